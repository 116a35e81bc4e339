"""All faults, one after the other, and the table of what came of them."""

import json
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

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
COUNTS = ("tried", "survived", "rows lost", "rows doubled", "rows with other numbers")
TIME = "seconds"
# those that start neither Ray nor very many processes
QUICK = ("killed", "bits", "json-bits", "cut", "side-files", "data", "bombs", "ids")


def inject_faults(output: Path, only: Sequence[str] | None = None, quick: bool = False) -> Outcome:
    """Do every fault to a small audit, and compare each final output with an undisturbed one, row by row, to the bit.

    Args:
        output: folder of the page; with `only` the lines of other faults are kept as an earlier run measured them.
        only: names of `FAULTS`; all by default.
        quick: few tries of those faults that need no Ray.

    Raises:
        UsageError: a name is no fault.
    """
    if unknown := [name for name in only or () if name not in FAULTS]:
        raise UsageError(f"{unknown[0]} is no fault: expected some of {', '.join(FAULTS)}")
    lines = _measured_before(output) if only else {}
    folder = Path(tempfile.mkdtemp(prefix="volgrowth-faults-"))
    try:
        audit = SmallAudit(folder, quick)
        for name in only or (QUICK if quick else FAULTS):
            lines[name] = _injected(audit, name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    table = [{key: value for key, value in lines[name].items() if key != TIME} for name in FAULTS if name in lines]
    tried, survived, lost, doubled, other = (sum(line[column] for line in table) for column in COUNTS)
    said = (
        f"Of {tried:,} tries {survived:,} were survived: {lost:,} rows were lost, {doubled:,} doubled, and {other:,} "
        f"had other numbers without a word."
    )
    sizes = {"rows": ROWS, "shard size": SHARD_ROWS, "workers on Ray": 1}
    stored = {"by name": [{"name": name, **line} for name, line in lines.items()]}
    return Outcome([said], {"table": table}, sizes, stored=stored)


def _injected(audit: SmallAudit, name: str) -> dict[str, Any]:
    """Do one fault, and return its line of the table."""
    say(f"fault: {name}")
    began = time.monotonic()
    line = FAULTS[name](audit)
    say(f"{line.survived} of {line.tried} survived")
    for failure in line.failures[:3]:
        say(f"not survived: {failure}")
    return {**line.row(), TIME: round(time.monotonic() - began)}


def _measured_before(output: Path) -> dict[str, dict[str, Any]]:
    """Return the lines that an earlier run left beside the page, by the name of the fault."""
    path = output / "engine" / "faults.json"
    lines = json.loads(path.read_text())["tables"]["by name"] if path.exists() else []
    return {line.pop("name"): line for line in lines}
