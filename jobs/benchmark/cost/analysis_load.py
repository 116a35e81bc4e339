"""From scores to lists: time and memory of all that an audit does after its last row was scored.

Scores are made up (`made_up_audit`), so that no network is in the way. The command runs in a process of its own, whose
memory is counted from where its libraries are loaded.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from jobs.benchmark.cost import made_up_audit
from jobs.benchmark.processes import ROOT
from jobs.experiments import Outcome, say
from volgrowth.errors import EngineError

MANY = 100_000_000
"""Rows of the audit whose time and memory are extrapolated."""
COLUMNS = (("CPU, s", "Seconds of CPU time"), ("above it, MiB", "MiB of memory"))
MOST_BEFORE = 1_000_000
"""Rows up to which an older version is measured: it held all of them, 1.6 KB for each."""
APPLY, MOST_APPLIED = "curate --apply", 1_000_000
"""Rows up to which a list is applied: to copy the data takes longer than all other commands together."""
SETTINGS = {"held-out rows": made_up_audit.HELD_OUT, "shard size": made_up_audit.SHARD_ROWS}


def analysis_load(folder: Path, sizes: Sequence[int], before: Path | None = None) -> Outcome:
    """Measure every size, and those up to `MOST_BEFORE` by an older version too if `before` is a checkout of it.

    Sizes that `folder` holds already are not measured again. A row of the table has the seconds of the command, its CPU
    time and that of its steps, and the most memory above that of the loaded libraries. The commands that read the
    finished audit are measured likewise.
    """
    found: list[dict[str, Any]] = []
    for rows in sizes:
        for version, checkout in (("this", ROOT), ("before", before)):
            if checkout and (checkout is ROOT or rows <= MOST_BEFORE):
                measured = _measured(folder / f"{version}-{rows}", rows, checkout)
                found.append({"rows": rows, "version": version, **measured})
    commands = [{"rows": rows, **measured} for rows in sizes for measured in _commands(folder / f"this-{rows}", rows)]
    said = [_line(found, version, *column) for version in ("this", "before") for column in COLUMNS]
    said += [_most_memory(found), *_faster(found)]
    return Outcome([line for line in said if line], {"table": found, "commands": commands}, SETTINGS)


def _measured(folder: Path, rows: int, checkout: Path) -> dict[str, Any]:
    """Measure a size by the code of a checkout, unless the folder holds what was measured before."""
    known = folder / "measured.json"
    if not known.exists():
        say(f"{rows:,} rows by {folder.name.split('-')[0]} version")
        _run(checkout, "make", str(folder), str(rows))
        known.write_text(_run(checkout, "finish", str(folder)))
    return json.loads(known.read_text())


def _commands(folder: Path, rows: int) -> list[dict[str, Any]]:
    """Measure the commands that follow the audit of a folder, each in a process of its own, unless that was done."""
    known = folder / "commands.json"
    if not known.exists():
        names = [name for name in made_up_audit.COMMANDS if rows <= MOST_APPLIED or name != APPLY]
        measured = [json.loads(_run(ROOT, "command", str(folder), name)) for name in names]
        known.write_text(json.dumps(measured))
    return json.loads(known.read_text())


def _line(found: Sequence[dict[str, Any]], version: str, column: str, what: str) -> str | None:
    """Say how a column grows with the rows, with what that means for `MANY`; None with fewer than three sizes."""
    mine = [row for row in found if row["version"] == version]
    if len(mine) < 3:
        return None
    fit = stats.linregress([row["rows"] / 1e6 for row in mine], [row[column] for row in mine])
    many = fit.intercept + fit.slope * MANY / 1e6
    return (
        f"{what}, {version} version: {fit.intercept:,.0f} and {fit.slope:,.0f} more for each million rows "
        f"(R² {fit.rvalue**2:.4f}); for {MANY:,} rows that would be {many:,.0f}."
    )


def _most_memory(found: Sequence[dict[str, Any]]) -> str:
    """Say how much memory this version takes at most, and how many bytes of temporary files."""
    mine = [row for row in found if row["version"] == "this"]
    memory = max(row["above it, MiB"] for row in mine)
    disk = max(row["temporary files, MiB"] * 2**20 / row["rows"] for row in mine)
    return (
        f"This version takes at most {memory:,.0f} MiB above that of the loaded libraries, at every size, and at most "
        f"{disk:,.0f} bytes of temporary files for each row."
    )


def _faster(found: Sequence[dict[str, Any]]) -> list[str]:
    """Say how much faster this version is at each size that the older one was measured at."""
    cpu = {(row["version"], row["rows"]): row["CPU, s"] for row in found}
    return [
        f"{rows:,} rows: {cpu['before', rows]:,.0f} s of CPU time before, {cpu['this', rows]:,.0f} s now: "
        f"{cpu['before', rows] / cpu['this', rows]:.1f} times faster."
        for version, rows in cpu
        if version == "before"
    ]


def _run(checkout: Path, *arguments: str) -> str:
    """Run `made_up_audit` in a process of its own, by the code of a checkout. Returns the last line that it printed.

    Raises:
        EngineError: the process failed.
    """
    command = [sys.executable, made_up_audit.__file__, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(checkout)})
    if done.returncode:
        raise EngineError(f"{' '.join(command)} ended with {done.returncode}: its own message says why")
    return done.stdout.splitlines()[-1]
