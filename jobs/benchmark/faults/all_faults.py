"""All faults, one after the other, and the table of what came of them."""

import shutil
import signal
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from jobs.benchmark.faults.damaged_files import (
    changed_data,
    cut_fragments,
    damaged_lock,
    damaged_side_files,
    flipped_bits,
    flipped_bits_of_json,
)
from jobs.benchmark.faults.ended_processes import (
    drivers_killed,
    drivers_told_to_end,
    heads_lost,
    late_writers,
    rows_that_end_workers,
    rows_that_hang,
    workers_killed,
)
from jobs.benchmark.faults.forged_outputs import forged_outputs
from jobs.benchmark.faults.hostile_inputs import bombs, evil_ids, model_bombs
from jobs.benchmark.faults.small_audit import ROWS, SHARD_ROWS, FaultLine, SmallAudit
from jobs.experiments import Outcome, say
from volgrowth.errors import UsageError

FAULTS: dict[str, Callable[[SmallAudit], FaultLine]] = {
    "killed": drivers_killed,
    "sigterm": partial(drivers_told_to_end, number=signal.SIGTERM, sender="Kubernetes, spot machines"),
    "sighup": partial(drivers_told_to_end, number=signal.SIGHUP, sender="a terminal closes"),
    "sigint": partial(drivers_told_to_end, number=signal.SIGINT, sender="Ctrl-C"),
    "workers": workers_killed,
    "ends": rows_that_end_workers,
    "hangs": rows_that_hang,
    "head": heads_lost,
    "late": late_writers,
    "bits": flipped_bits,
    "json-bits": flipped_bits_of_json,
    "cut": cut_fragments,
    "side-files": damaged_side_files,
    "lock": damaged_lock,
    "data": changed_data,
    "bombs": bombs,
    "model-bombs": model_bombs,
    "ids": evil_ids,
    "forged": forged_outputs,
}
# those that start neither Ray nor very many processes
QUICK = ("killed", "bits", "json-bits", "cut", "side-files", "data", "bombs", "ids")


def inject_faults(only: list[str] | None = None, quick: bool = False) -> Outcome:
    """Do every fault to a small audit, and compare each final output with an undisturbed one, row by row, to the bit.

    Args:
        only: names of `FAULTS`; all by default.
        quick: few tries of those faults that need no Ray.

    Raises:
        UsageError: a name is no fault.
    """
    if unknown := [name for name in only or () if name not in FAULTS]:
        raise UsageError(f"{unknown[0]} is no fault: expected some of {', '.join(FAULTS)}")
    folder = Path(tempfile.mkdtemp(prefix="volgrowth-faults-"))
    lines = []
    try:
        audit = SmallAudit(folder, quick)
        for name in only or (QUICK if quick else FAULTS):
            say(f"fault: {name}")
            line = FAULTS[name](audit)
            say(f"{line.survived} of {line.tried} survived")
            for failure in line.failures[:3]:
                say(f"not survived: {failure}")
            lines.append(line)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    tried, survived = (sum(getattr(line, name) for line in lines) for name in ("tried", "survived"))
    lost, doubled, other = (sum(getattr(line, name) for line in lines) for name in ("lost", "doubled", "other"))
    said = (
        f"Of {tried:,} tries {survived:,} were survived: {lost:,} rows were lost, {doubled:,} doubled, and {other:,} "
        f"had other numbers without a word."
    )
    sizes = {"rows": ROWS, "shard size": SHARD_ROWS, "workers on Ray": 1}
    return Outcome([said], {"table": [line.row() for line in lines]}, sizes)
