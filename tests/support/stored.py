"""Tables of an audit in its output folder, as an audit that ran leaves them."""

import pyarrow as pa

from volgrowth.audit.output.fragments import publish_fragment
from volgrowth.audit.output.manifest import SCORES_FOLDER
from volgrowth.audit.output.result import FINDINGS_FILE, HOLDOUT_FINDINGS_FILE, Audit


def store_tables(
    audit: Audit, scores: pa.Table, findings: pa.Table, holdout: tuple[pa.Table, pa.Table] | None = None
) -> None:
    """Publish the fragments and findings of an audit, of the held-out images too if there are any."""
    for shard in audit.frozen.shards:
        table = scores if shard.folder == SCORES_FOLDER else holdout[0] if holdout else None
        if table is not None:
            rows = table.slice(shard.start, shard.rows)
            publish_fragment(audit.store, audit.frozen, shard, rows, 1)
    audit.store.write_table(FINDINGS_FILE, findings, {})
    if holdout:
        audit.store.write_table(HOLDOUT_FINDINGS_FILE, holdout[1], {})
