"""What `volgrowth verify --rates` adds: how often the model makes each flagged or proven image.

Each image is one task (`audit.sampling.rating`). Its rate is published as soon as it is known, so that an interrupted
command goes on with the others.
"""

import numpy as np
import pyarrow as pa

from volgrowth.analysis.verification.generated import choose_rated, members_of
from volgrowth.audit.engine.ledger import Task
from volgrowth.audit.engine.progress import AuditProgress
from volgrowth.audit.engine.running import run_tasks
from volgrowth.audit.engine.session import Session
from volgrowth.audit.output.manifest import SCORES_FOLDER
from volgrowth.audit.output.mending import tell_user
from volgrowth.audit.output.result import Audit
from volgrowth.audit.sampling.drawing import SAMPLER
from volgrowth.audit.sampling.rating import RIVALS, Rated, RatingWorker
from volgrowth.audit.sampling.sample_files import FOLDER
from volgrowth.commands.searching import search_all
from volgrowth.errors import DamagedError
from volgrowth.numerics.generation_rate import GenerationRate
from volgrowth.records import RATES

RATES_FILE = f"{FOLDER}/rates.parquet"


def measure_rates(session: Session, audit: Audit, groups: dict[str, np.ndarray], quiet: bool) -> pa.Table:
    """Measure the rates of the images that were flagged or proven, but for those that an earlier call measured.

    Args:
        session: the driver session that the workers belong to.
        audit: the audit, with its verification.
        groups: group of each audited and held-out row, by the folder of their scores, as `search_groups` numbers them.
        quiet: show no progress.

    Returns:
        A table with the columns of `records.RATES`, one row for each image.
    """
    rows = choose_rated(audit.findings, audit.summary["verification"])
    footer = {"plan_digest": audit.frozen.digest, "sampler": SAMPLER}
    known = _kept(audit, footer)
    todo = [row for row in rows.tolist() if row not in known]
    rated = _rated(session, audit, todo, groups, quiet) if todo else []
    progress = AuditProgress(len(rows), len(rows), len(rows) - len(todo), quiet=quiet, doing="rating", unit="images")
    cluster = dict(zip(audit.findings["row"].to_pylist(), audit.findings["cluster"].to_pylist(), strict=True))

    def task(one: Rated) -> Task:
        def finished(found: GenerationRate) -> tuple[()]:
            known[one.row] = _record(one.row, cluster[one.row], found)
            audit.store.write_table(RATES_FILE, pa.Table.from_pylist(list(known.values()), schema=RATES), footer)
            progress.advance(1, 0)
            return ()

        return Task(f"the rate of row {one.row}", "rate", (one,), finished)

    run_tasks(session, RatingWorker, map(task, rated), len(rated), progress)
    return pa.Table.from_pylist([known[row] for row in rows.tolist()], schema=RATES)


def _kept(audit: Audit, footer: dict[str, str]) -> dict[int, dict[str, object]]:
    """Return the records of rates that an earlier call measured with the same model and sampler, by row."""
    if not audit.store.exists(RATES_FILE):
        return {}
    try:
        table = audit.store.read_table(RATES_FILE)
    except DamagedError as error:
        tell_user(f"{error.path} is damaged ({error.why}): its rates are measured again")
        return {}
    written = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    if not footer.items() <= written.items() or table.schema.names != RATES.names:
        return {}
    return {record["row"]: record for record in table.to_pylist()}


def _record(row: int, cluster: int, found: GenerationRate) -> dict[str, object]:
    rates = (found.rate, found.low, found.high) if found.measurable else (None,) * 3
    numbers = found.draws, found.returned, found.effective, found.nfe
    return dict(zip(RATES.names, (row, cluster, *rates, *numbers), strict=True))


def _rated(session: Session, audit: Audit, rows: list[int], groups: dict[str, np.ndarray], quiet: bool) -> list[Rated]:
    """Find the images around each row's image."""
    asked = "nearest_to_rows", rows, len(rows)
    found = search_all(session, audit.frozen, asked, groups, RIVALS, "looking around", quiet)
    audited = len(groups[SCORES_FOLDER])
    return [_one(audit, row, around, audited) for row, around in zip(rows, found.group, strict=True)]


def _one(audit: Audit, row: int, around: np.ndarray, audited: int) -> Rated:
    members = members_of(audit.findings, row)
    cluster = audit.findings["cluster"].to_numpy()
    numbers = around[around >= 0]
    others = numbers[numbers < audited]
    others = others[cluster[others] != cluster[row]]
    held = numbers[numbers >= audited] - audited
    return Rated(row, tuple(members.tolist()), tuple(others.tolist()), tuple(held.tolist()))
