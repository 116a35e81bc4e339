"""What was made of an audit before it was extended, or before samples were drawn, does not pass for what is so now."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.support.page_parser import parse
from volgrowth.audit.output.checking import BadFile, verify_files
from volgrowth.cli import run_command
from volgrowth.commands.verify import verify_audit
from volgrowth.demo.cases import write_image_parquet
from volgrowth.storage.store import Store

SAMPLES = 8
DRAWN = f"{SAMPLES} samples drawn from the model"


class Made:
    """A finished audit of 60 digits in one file, with a page without pictures."""

    def __init__(self, folder: Path, digits: np.ndarray, model: Path):
        self.out, self.data, self.digits = folder / "out", folder / "data", digits
        self.data.mkdir()
        self.add(0, 60)
        write_image_parquet(folder / "held.parquet", digits[200:310], [str(row) for row in range(110)])
        how = ["--holdout", str(folder / "held.parquet"), "--output", str(self.out), "--engine", "local"]
        self.command = ["audit", str(model), str(self.data), *how, "--preset", "screen"]
        assert run_command(self.command) == 0
        self.run("report", "--redact")

    def add(self, start: int, stop: int) -> None:
        """Give the data set a file more."""
        names = [str(row) for row in range(start, stop)]
        write_image_parquet(self.data / f"{start:03d}.parquet", self.digits[start:stop], names)

    def run(self, command: str, *options: str) -> None:
        assert run_command([command, str(self.out), *options]) == 0

    def verify(self) -> None:
        verify_audit(str(self.out), SAMPLES, engine="local", quiet=True)

    @property
    def bad(self) -> dict[str, BadFile]:
        return {each.name: each for each in verify_files(Store(str(self.out))).bad}

    @property
    def redacted(self) -> str:
        return parse((self.out / "report-redacted.html").read_text()).visible


@pytest.fixture
def made(tmp_path: Path, digits: np.ndarray, tiny_model: Path) -> Made:
    return Made(tmp_path, digits, tiny_model)


def test_the_page_without_pictures_says_what_the_other_page_says(made: Made) -> None:
    assert DRAWN not in made.redacted
    made.verify()
    assert DRAWN in made.redacted
    assert not made.bad
    before = {path: path.stat().st_mtime_ns for path in made.out.rglob("*")}
    made.run("report")
    assert {path: path.stat().st_mtime_ns for path in made.out.rglob("*")} == before, "nothing was drawn again"


def test_a_page_without_pictures_that_changed_is_written_again_and_one_that_was_taken_away_is_not(made: Made) -> None:
    page = made.out / "report-redacted.html"
    whole = page.read_bytes()
    page.write_bytes(whole + b" ")
    assert made.bad[page.name].fix == f"run `volgrowth report {made.out} --redact`"
    made.run("report")
    assert page.read_bytes() == whole
    assert not made.bad
    page.unlink()
    assert made.bad[page.name].why == "it is missing"
    made.run("report")
    assert not page.exists()
    assert not made.bad


def test_a_page_without_pictures_of_an_earlier_version_is_named(made: Made) -> None:
    """Which left it as it was when the audit was extended."""
    store = Store(str(made.out))
    summary = store.read_json("summary.json")
    del summary["pages"]["report-redacted.html"]
    store.write_json("summary.json", summary)
    (found,) = made.bad.values()
    assert found.why.startswith("it is of the audit as it was before")
    made.run("report", "--redact")
    assert not made.bad


def test_what_was_made_before_an_audit_was_extended_is_named(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    made.verify()
    made.run("curate", "--fdr", "0.1")
    assert not made.bad
    made.add(60, 90)
    assert run_command([*made.command, "--extend"]) == 0
    assert DRAWN not in made.redacted
    assert "90 images audited" in made.redacted
    capsys.readouterr()
    assert run_command(["check-output", str(made.out)]) == 2
    said = sorted(capsys.readouterr().err.splitlines())
    verify = f"run `volgrowth verify {made.out}` with the same --samples"
    assert [line.partition(": ")[0] for line in said] == [
        "curation.parquet",
        "verification/returns.parquet",
        "verification/samples.parquet",
    ]
    assert "it is of another audit, or of this one before it was extended (" in said[0]
    assert said[0].endswith(f"; run `volgrowth curate {made.out}` again")
    assert all(line.endswith(f"it was before it was extended or finished anew; {verify}") for line in said[1:])
    # the same audit has nothing to do for them, and leaves them
    before = {path: path.stat().st_mtime_ns for path in made.out.rglob("*.parquet")}
    assert run_command(made.command) == 0
    assert "nothing was measured" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in made.out.rglob("*.parquet")} == before
    made.verify()
    made.run("curate", "--fdr", "0.1")
    assert not made.bad


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("fewer", "it does not list each row of the audit, in their order"),
        ("nameless", "it lacks the column audit"),
    ],
)
def test_a_list_that_is_none_of_the_audit_is_named(made: Made, change: str, why: str) -> None:
    made.run("curate", "--fdr", "0.1")
    path = made.out / "curation.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(1) if change == "fewer" else table.drop_columns(["audit"]), path)
    assert made.bad["curation.parquet"].why == why
