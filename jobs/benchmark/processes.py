"""Processes that a measurement starts: their environment, memory and CPU time, from /proc."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]


def in_repository() -> dict[str, str]:
    """Return an environment in which Python finds `jobs`, which is not part of an installed volgrowth."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def command_of(guard: int) -> int:
    """Return the process in which a command works; what was started is its guard, until it has started the other."""
    try:
        children = Path(f"/proc/{guard}/task/{guard}/children").read_text().split()
    except OSError:  # it has ended
        children = []
    return int(children[0]) if children else guard


def resident_mib(process: int, peak: bool = False) -> float:
    """Return a process's memory in MiB, now or at its peak; 0 when it has ended.

    `getrusage` would not do for the peak: it counts what the process had before `exec`.
    """
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    name = "VmHWM" if peak else "VmRSS"
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(name)), 0.0)


def cpu_of_tree(root: int) -> dict[int, float]:
    """Return the CPU seconds so far of a process and of all below it, by process id."""
    seconds, parents = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        number = int(path.parent.name)
        parents[number] = int(fields[1])
        seconds[number] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    below = {root}
    while more := {number for number, parent in parents.items() if parent in below} - below:
        below |= more
    return {number: seconds[number] for number in below if number in seconds}
