"""A list made or read, kept, and applied: what `volgrowth curate` does."""

import pyarrow as pa

from volgrowth.analysis.policy import Policy, make_list
from volgrowth.audit.output.result import open_audit
from volgrowth.curation.applying import Receipt, apply_list, check_destination
from volgrowth.curation.lists import CURATION_FILE, encode_list, list_file, read_list
from volgrowth.errors import OutputError, UsageError


def curate_audit(
    output: str,
    policy: Policy | None = None,
    *,
    list_path: str | None = None,
    destination: str | None = None,
    indices: bool = False,
) -> tuple[pa.Table, Receipt | None]:
    """The list, which is also kept in the audit as `curation.parquet`, and what was applied if that was asked for.

    Args:
        output: of a finished audit.
        policy: makes the list; without one it is read.
        list_path: where the list is written, or is: .parquet or .csv.
        destination: a new folder for the data set that the list says; see `apply_list`.
        indices: see there.

    Raises:
        VolgrowthError: as `make_list`, `read_list` and `apply_list`; a file with another list is in the way.
    """
    audit = open_audit(output)
    if destination is not None:
        check_destination(audit, destination, indices)
    if policy is not None:
        table, how = make_list(audit, policy), f"{policy.by} {policy.limit:g}, {policy.action}"
    elif list_path is not None:
        table, how = read_list(audit, list_path), "as read from a file"
    else:
        raise UsageError(
            "neither a policy nor a list: give one of --fdr, --top-k and --max-score, or a list that exists as --list"
        )
    table = table.replace_schema_metadata({"schema_version": str(audit.plan.schema_version), "policy": how})
    if policy is not None and list_path is not None:
        _write(table, list_path)
    audit.store.write(CURATION_FILE, encode_list(table, CURATION_FILE))
    if destination is None:
        return table, None
    return table, apply_list(audit, table, destination, indices=indices)


def _write(table: pa.Table, file: str) -> None:
    store, name = list_file(file)
    data = encode_list(table, name)
    if store.exists(name):
        if store.read(name) == data:
            return
        raise OutputError(
            f"--list {file} exists and holds another list, which may have been edited: leave the policy out to take "
            "that, or choose another name"
        )
    store.write(name, data)
