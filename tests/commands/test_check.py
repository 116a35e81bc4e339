"""`volgrowth check` as CI runs it: exit codes, an ASCII terminal, a reader that leaves, names that are no commands."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import VOLGROWTH, volgrowth
from tests.curation.conftest import ROWS, audited, images  # noqa: F401
from volgrowth.audit.output.result import Audit

EVIL = "::error::pwned\n##[error]also \x1b[31m née 🎈 \u202egnp"


@pytest.fixture
def out(audited: Audit, tmp_path: Path) -> Callable[..., Path]:  # noqa: F811
    """A copy of a finished audit with three flagged images of evil names, as if so many images were held out."""

    def out(held: int) -> Path:
        folder = tmp_path / "out"
        shutil.copytree(audited.store.root, folder)
        findings = pq.read_table(folder / "findings.parquet")
        columns = {
            "q_value": [0.01 if row < 3 else 1.0 for row in range(ROWS)],
            "outside_range": [False] * ROWS,
            "image_id": [f"{EVIL}{row}" for row in range(ROWS)],
        }
        for name, values in columns.items():
            index = findings.column_names.index(name)
            findings = findings.set_column(index, findings.schema.field(name), pa.array(values, findings[name].type))
        pq.write_table(findings, folder / "findings.parquet")
        summary = json.loads((folder / "summary.json").read_text())
        del summary["sha256"]  # of what it was
        summary["detection"] |= {"null": "held-out", "calibration_rows": held}
        (folder / "summary.json").write_text(json.dumps(summary))
        return folder

    return out


@pytest.mark.parametrize(
    ("held", "allowed", "code", "sign", "counts"),
    [(10_000, 0.1, 0, "✅", ("0", "0")), (10_000, 0.02, 1, "❌", ("1", "0")), (100, 0.1, 2, "⚠️", ("0", "1"))],
)
def test_exit_codes_of_a_process_on_any_terminal(out, tmp_path, held, allowed, code, sign, counts):
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"}
    given = ["check", out(held), "--fdr", "0.05", "--max-flagged", allowed, "--junit", tmp_path / "check.xml"]
    said = volgrowth(*given, env=ascii_only)
    assert said.returncode == code, said.stderr
    assert said.stderr == ""
    assert "\x1b" not in said.stdout
    assert not any(line.lstrip().startswith(("::", "##[")) for line in said.stdout.splitlines())
    assert r"row 0: ::error::pwned\n" in said.stdout
    assert r"\U0001f388" in said.stdout
    if code == 2:
        assert said.stdout.splitlines()[1].startswith("  but: With 100 held-out images fewer than 12 memorized ones")
    suite = ElementTree.parse(tmp_path / "check.xml").getroot()
    assert (suite.get("failures"), suite.get("errors")) == counts
    if code:
        marked = volgrowth(*given[:-2], "--markdown")
        assert marked.returncode == code
        assert marked.stdout.startswith(f"### {sign} volgrowth check: ")


@pytest.mark.parametrize(("held", "allowed", "kind"), [(10_000, 0.1, "notice"), (10_000, 0.02, "error")])
def test_annotations_of_github_say_the_verdict_and_nothing_that_an_image_is_called(out, held, allowed, kind):
    said = volgrowth("check", out(held), "--fdr", "0.05", "--max-flagged", allowed, "--github").stdout.splitlines()
    commands = [line for line in said if line.startswith("::")]
    assert commands[0].startswith(f"::{kind} title=volgrowth check::")
    assert [line.startswith("::warning title=memorized image::row ") for line in commands[-3:]] == [True] * 3
    assert len(commands) <= 10
    assert not any("\x1b" in line or line.startswith("::error::pwned") for line in said)


def test_a_reader_that_leaves_does_not_change_the_verdict(out):
    piped = f'"{VOLGROWTH}" check "{out(10_000)}" --max-flagged 0.02 | true; echo "${{PIPESTATUS[0]}}"'
    said = subprocess.run(["bash", "-c", piped], capture_output=True, text=True, check=False)
    assert (said.stdout.strip(), said.stderr) == ("1", "")
