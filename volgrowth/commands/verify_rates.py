"""What `volgrowth verify --rates` adds: how often the model makes each flagged or proven image, or one asked for.

Each image is one task (`audit.sampling.rating`). Its rate is published as soon as it is known, so that an interrupted
command goes on with the others.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from volgrowth.analysis.judging import JudgedAudit
from volgrowth.analysis.verification.generated import choose_rated, members_of
from volgrowth.analysis.verification.samples import ImageNumbers
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
from volgrowth.errors import DamagedError, UsageError
from volgrowth.numerics.generation_rate import GenerationRate
from volgrowth.records import RATES, Status

RATES_FILE = f"{FOLDER}/rates.parquet"
_NAMED = ("row", "image_id", "status")


def asked_rows(audit: Audit, ids: frozenset[str]) -> list[int]:
    """Return the rows of the images with these ids.

    Raises:
        UsageError: an id is not in the audit, or its image could not be scored.
    """
    rows, known = list[int](), set[str]()
    for part in audit.parts(scores=["image_id", "status"]) if ids else ():
        names = part["image_id"].to_pylist()
        there = np.flatnonzero(np.isin(names, list(ids)))
        for row, name, status in zip(*(part[n].take(there).to_pylist() for n in _NAMED), strict=True):
            if status != Status.OK:
                raise UsageError(f"--rates-of names {name!r}, which could not be scored ({status}): leave it out")
            rows.append(row)
            known.add(name)
    if missing := sorted(ids - known):
        raise UsageError(
            f"--rates-of names {missing[0]!r}, which is no image_id of this audit"
            f"{f' ({len(missing)} such ids)' if len(missing) > 1 else ''}: expected one id a line"
        )
    return rows


def measure_rates(
    session: Session, audit: Audit, groups: Mapping[str, ImageNumbers], asked: Sequence[int], quiet: bool
) -> tuple[pa.Table, int]:
    """Measure the rates of the images that were flagged, proven or asked for; those of an earlier call are kept.

    Args:
        session: the driver session that the workers belong to.
        audit: the audit, with its verification.
        groups: numbers of the audited and the held-out images, by the folder of their scores.
        asked: rows whose images are rated too.
        quiet: show no progress.

    Returns:
        A table with the columns of `records.RATES`, one row for each image, and how many of them were asked for alone.
    """
    chosen, others = choose_rated(JudgedAudit(audit, audit.summary["verification"]), asked)
    rows, footer = chosen["row"].to_pylist(), {"plan_digest": audit.frozen.digest, "sampler": SAMPLER}
    known = _kept(audit, footer)
    todo = chosen.filter(pa.array([row not in known for row in rows], pa.bool_()))
    rated = _rated(session, audit, todo, groups, quiet) if len(todo) else []
    progress = AuditProgress(len(rows), len(rows), len(rows) - len(todo), quiet=quiet, doing="rating", unit="images")
    cluster = dict(zip(rows, chosen["cluster"].to_pylist(), strict=True))

    def task(one: Rated) -> Task:
        def finished(found: GenerationRate) -> tuple[()]:
            known[one.row] = _record(one.row, cluster[one.row], found)
            audit.store.write_table(RATES_FILE, pa.Table.from_pylist(list(known.values()), schema=RATES), footer)
            progress.advance(1, 0)
            return ()

        return Task(f"the rate of row {one.row}", "rate", (one,), finished)

    run_tasks(session, RatingWorker, map(task, rated), len(rated), progress)
    return pa.Table.from_pylist([known[row] for row in rows], schema=RATES), others


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


def _rated(
    session: Session, audit: Audit, chosen: pa.Table, groups: Mapping[str, ImageNumbers], quiet: bool
) -> list[Rated]:
    """Find the images around each row's image."""
    rows = chosen["row"].to_pylist()
    asked = "nearest_to_rows", rows, len(rows)
    around = search_all(session, audit.frozen, asked, groups, RIVALS, "looking around", quiet).group
    audited = len(groups[SCORES_FOLDER].first)
    members = members_of(audit.parts(findings=["cluster", "identical"]), chosen)
    cluster = _clusters(audit, np.unique(around[(around >= 0) & (around < audited)]))
    found = []
    for row, own, numbers in zip(rows, chosen["cluster"].to_pylist(), around, strict=True):
        others = [other for other in numbers.tolist() if 0 <= other < audited and cluster[other] != own]
        held = numbers[numbers >= audited] - audited
        found.append(Rated(row, tuple(members[row].tolist()), tuple(others), tuple(held.tolist())))
    return found


def _clusters(audit: Audit, rows: np.ndarray) -> dict[int, int]:
    """Return the clusters of some rows."""
    found: dict[int, int] = {}
    for part in audit.parts(findings=["cluster"]):
        some = part.filter(pa.array(np.isin(part["row"].to_numpy(), rows)))
        found |= zip(some["row"].to_pylist(), some["cluster"].to_pylist(), strict=True)
    return found
