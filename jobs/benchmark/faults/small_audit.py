"""The small audit that faults are done to, and the comparison of what came out with an audit that nobody disturbed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.benchmark.faults.held_model import FOLDER, MODULE, hold_workers
from jobs.benchmark.processes import command_of, in_repository
from volgrowth.cli import run_command
from volgrowth.demo.cases import write_image_parquet
from volgrowth.errors import EngineError
from volgrowth.records import SCORES

ROWS, SHARD_ROWS = 120, 8
SETTINGS = ["--shard-size", str(SHARD_ROWS), "--set", f"batch_size={SHARD_ROWS}"]
# all columns of a fragment but the name of a file, which is another one where the data are
NAMES = frozenset(("source", "image_id"))


@dataclass(frozen=True)
class Difference:
    """How the rows of an audit differ from those of the undisturbed one.

    Attributes:
        lost: rows that are missing.
        doubled: rows beyond the first of their number.
        other: rows of which any column differs by a bit.
    """

    lost: int = 0
    doubled: int = 0
    other: int = 0


SAME = Difference()


@dataclass
class FaultLine:
    """A line of the table: a fault, what was done, and what came of all tries.

    Attributes:
        fault: what happened.
        done: how it was done, and what counts as survived.
        tried: number of tries.
        survived: tries that ended as they should.
        lost: rows that were missing afterwards, over all tries.
        doubled: rows that were there more than once.
        other: rows with other numbers, where nothing was said.
        failures: what was said in the tries that did not survive.
    """

    fault: str
    done: str
    tried: int = 0
    survived: int = 0
    lost: int = 0
    doubled: int = 0
    other: int = 0

    def __post_init__(self) -> None:
        self.failures: list[str] = []

    def count(self, ended_well: bool, found: Difference = SAME, said: str = "") -> None:
        """Count a try: it survived if it ended well and nothing differs."""
        well = ended_well and found == SAME
        self.tried += 1
        self.survived += well
        self.lost += found.lost
        self.doubled += found.doubled
        self.other += found.other
        if not well:
            self.failures.append(f"{found}: {said[:400]} ... {said[-200:]}")

    def row(self) -> dict[str, Any]:
        """Return the line as it stands in the page."""
        return {
            "fault": self.fault,
            "what was done": self.done,
            "tried": self.tried,
            "survived": self.survived,
            "rows lost": self.lost,
            "rows doubled": self.doubled,
            "rows with other numbers": self.other,
        }


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, and all that it printed."""

    code: int
    said: str

    @property
    def refused(self) -> bool:
        """Whether it ended with exit code 2 and a sentence."""
        return self.code == 2 and "Traceback" not in self.said


class SmallAudit:
    """A data set of `ROWS` images, its undisturbed scores, and commands on copies of the audit.

    Args:
        folder: an empty folder for all that is tried.
        quick: try everything once or twice, without Ray.
    """

    def __init__(self, folder: Path, quick: bool = False):
        self.folder, self.quick = folder.resolve(), quick
        self.data = self.folder / "data"
        (self.folder / "workers").mkdir(parents=True, exist_ok=True)
        os.environ[FOLDER] = str(self.folder)
        self.images = np.random.default_rng(0).integers(0, 100, (ROWS, 1, 8, 8), np.uint8)
        self.data.mkdir(exist_ok=True)
        for part in range(2):
            rows = range(part * ROWS // 2, (part + 1) * ROWS // 2)
            write_image_parquet(self.data / f"{part}.parquet", self.images[rows], [f"image-{row}" for row in rows])
        self.undisturbed = self.folder / "undisturbed"
        ended = self.audit(self.undisturbed)
        if ended.code:
            raise EngineError(f"the undisturbed audit ended with {ended.code}: {ended.said}")
        self.expected = fragments(self.undisturbed)

    def new(self, name: str) -> Path:
        """Return the path of an output that is not there."""
        shutil.rmtree(self.folder / name, ignore_errors=True)
        return self.folder / name

    def copy(self, name: str, unfinished: bool = False) -> Path:
        """Return a copy of the undisturbed audit; unfinished, as if it had been killed before the last phase."""
        copied = self.new(name)
        shutil.copytree(self.undisturbed, copied)
        if unfinished:
            (copied / "_SUCCESS").unlink()
        return copied

    def arguments(self, output: Path, *more: object, data: Path | None = None, factory: str = "held") -> list[str]:
        """Return the command line that audits; `more` comes last and wins."""
        first = ["audit", f"{MODULE}:{factory}", str(data or self.data), "--output", str(output)]
        return [*first, *SETTINGS, "--trust-model", "--engine", "local", *map(str, more)]

    def audit(self, output: Path, *more: object, **asked: Any) -> Ended:
        """Audit in this process."""
        return command(self.arguments(output, *more, **asked))

    def start(
        self, output: Path, *more: object, environment: Mapping[str, str] | None = None, **asked: Any
    ) -> subprocess.Popen[str]:
        """Start an audit as a process of its own, in a session of its own, with additions to the environment."""
        program = Path(sys.executable).parent / "volgrowth"
        return subprocess.Popen(
            [program, *self.arguments(output, *more, **asked)],
            env={**in_repository(), **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    @contextmanager
    def caught(self, output: Path, count: int, *more: object, **asked: Any) -> Iterator[subprocess.Popen[str]]:
        """Start an audit; its process while the workers wait, once so many fragments are there."""
        for left in (self.folder / "workers").iterdir():
            left.unlink()
        with hold_workers(self.folder, output, count):
            process = self.start(output, *more, **asked)
            wait_until(lambda: len(list(output.glob("scores/*.parquet"))) >= count, process)
            yield process

    def worker(self, driver: subprocess.Popen[str]) -> int:
        """Return the process id of a worker of a driver."""
        known = {int(path.name) for path in (self.folder / "workers").iterdir()} - {command_of(driver.pid)}
        return next(pid for pid in sorted(known, reverse=True) if Path(f"/proc/{pid}").exists())

    def difference(self, output: Path, besides: Collection[int] = ()) -> Difference:
        """Compare the fragments of an output with the undisturbed ones, but for the rows `besides`."""
        return compare_rows(fragments(output), self.expected, besides)

    def resumed(self, line: FaultLine, output: Path, interrupted_well: bool = True, said: str = "") -> None:
        """Give the command again after a fault, and count the try by what came out."""
        ended = self.audit(output)
        line.count(interrupted_well and ended.code == 0, self.difference(output), said + ended.said)


def command(arguments: Sequence[str]) -> Ended:
    """Run a `volgrowth` command in this process."""
    said = StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        code = run_command(arguments)
    return Ended(code, said.getvalue())


def fragments(output: Path) -> pa.Table:
    """Return the rows of all fragments as they lie there, read without any check of volgrowth."""
    files = [path for path in sorted(output.glob("scores/*.parquet")) if not path.name.startswith(".")]
    tables = [pq.read_table(path) for path in files] or [SCORES.empty_table()]
    return pa.concat_tables([table.replace_schema_metadata() for table in tables], promote_options="permissive")


def compare_rows(found: pa.Table, expected: pa.Table, besides: Collection[int] = ()) -> Difference:
    """Compare tables of scores row by row, all columns, to the bit; files and ids may have other names.

    Args:
        found: the scores of a disturbed audit.
        expected: those of an undisturbed one.
        besides: rows that must be there, and whose numbers are not compared.
    """
    names = [name for name in expected.column_names if name not in NAMES]
    # repr of a float names it to the bit, and is equal for two nan
    want = {row["row"]: repr(row) for row in expected.select(names).to_pylist()}
    got = [(row["row"], repr(row)) for row in found.select(names).to_pylist()]
    times = Counter(number for number, _ in got)
    other = {number for number, said in got if number not in besides and said != want.get(number)}
    doubled = sum(count - 1 for count in times.values())
    return Difference(sum(number not in times for number in want), doubled, len(other))


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until something has happened, as long as the process that brings it about runs.

    Raises:
        EngineError: the process ended before.
    """
    while not condition():
        if process.poll() is not None:
            raise EngineError(f"{process.args!r} ended with {process.returncode}: {process.communicate()[0]}")
        time.sleep(0.01)


def end_all(process: subprocess.Popen[str]) -> None:
    """Kill a command and all processes of its session."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
