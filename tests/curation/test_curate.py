"""`volgrowth curate` and `volgrowth check` as a person or a CI job types them."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pyarrow.parquet as pq
import pytest

from tests.conftest import start_volgrowth, wait_for
from tests.curation.conftest import ROWS
from tests.support.samples import write_parquet
from volgrowth.audit.output.result import Audit
from volgrowth.cli import run_command as command
from volgrowth.curation.undoing import RECEIPT


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def out(audited: Audit) -> str:
    return audited.store.url


@pytest.fixture
def refused(capsys, tmp_path, out):
    """Run a command that cannot start; what it says. Nothing is written, here or in the audit."""

    def refused(*arguments: object) -> str:
        before = {path: path.stat().st_mtime_ns for folder in (tmp_path, Path(out)) for path in folder.rglob("*")}
        assert command([str(a) for a in arguments]) == 2
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        assert captured.out == ""
        now = {path: path.stat().st_mtime_ns for folder in (tmp_path, Path(out)) for path in folder.rglob("*")}
        assert now == before
        return " ".join(captured.err.split())

    return refused


def test_a_list_is_made_edited_applied_and_undone(out, capsys):
    assert command(["curate", out, "--top-k", "2", "--action", "drop", "--list", "list.csv"]) == 0
    said = capsys.readouterr().out
    assert "list: list.csv" in said
    assert re.search(r"of these .* innocent", said)
    text = Path("list.csv").read_text()
    dropped = text.count('"drop"')
    assert f"drop {dropped}, downweight 0," in said
    line = next(line for line in text.splitlines() if '"keep"' in line)
    Path("list.csv").write_text(text.replace(line, line.replace('"keep"', '"drop"')))
    assert command(["curate", out, "--list", "list.csv", "--apply", "new"]) == 0
    said = capsys.readouterr().out
    assert f"drop {dropped + 1}," in said
    assert f"{ROWS - dropped - 1} rows in new; volgrowth curate --undo new removes it" in said
    assert len(pq.read_table("new")) == ROWS - dropped - 1
    assert command(["curate", "--undo", "new"]) == 0
    assert f"removed new ({ROWS - dropped - 1} rows, 2 files)" in capsys.readouterr().out
    assert os.listdir() == ["list.csv"]


def test_one_command_does_all_of_it(out, audited):
    ids = audited.findings["image_id"].to_pylist()
    # as Windows writes it
    Path("allow.txt").write_bytes(f"\ufeff{ids[3]}\r\n{audited.scores['source'][10].as_py()}\r\n".encode())
    Path("opt-out.txt").write_text(f"{ids[20]}\n\n")
    arguments = ["--allow", "allow.txt", "--opt-out", "opt-out.txt", "--action", "dedupe"]
    assert command(["curate", out, "--max-score=-1e9", *arguments, "--apply", "new"]) == 0
    # of each cluster one stays, or those that are allowed; what opted out does not
    numbers = sorted(
        number for name in ("a", "more/b") for number in pq.read_table(f"new/{name}.parquet")["number"].to_pylist()
    )
    clusters = {audited.findings["cluster"][number].as_py() for number in numbers}
    assert {3, 10} <= set(numbers)
    assert 20 not in numbers
    assert len(numbers) == len(clusters)


def test_what_curate_refuses(refused, out, tmp_path):
    (tmp_path / "there").mkdir()
    Path("unknown.txt").write_text("nobody\n")
    Path("latin.txt").write_bytes(b"\xe9\n")
    for arguments, message in (
        ([], "needs the OUTPUT of a finished audit"),
        (["nowhere", "--fdr", "0.1"], "nowhere holds no audit"),
        ([out], "neither a policy nor a list"),
        ([out, "--fdr", "0.1", "--top-k", "3"], "--fdr and --top-k were given: expected one of them"),
        ([out, "--action", "drop"], "--action needs --fdr, --top-k or --max-score beside it"),
        ([out, "--fdr", "2"], "--fdr 2: expected above 0 and below 1"),
        ([out, "--fdr", "0.1", "--action", "burn"], "--action burn: expected drop, dedupe or downweight"),
        ([out, "--fdr", "0.1", "--allow", "unknown.txt"], "--allow names 'nobody', which is neither"),
        ([out, "--fdr", "0.1", "--allow", "latin.txt"], "--allow latin.txt cannot be read"),
        ([out, "--fdr", "0.1", "--opt-out", "gone.txt"], "--opt-out gone.txt cannot be read"),
        ([out, "--fdr", "0.1", "--list", "list.txt"], "ends in .parquet or .csv"),
        ([out, "--list", "gone.csv"], "gone.csv cannot be read"),
        ([out, "--fdr", "0.1", "--apply", "there"], "--apply there exists: choose a new folder"),
        ([out, "--fdr", "0.1", "--apply", "nope://bucket/new"], "output nope://bucket/new cannot be opened"),
        ([out, "--fdr", "0.1", "--apply", "new", "--indices"], "--indices: the rows of"),
        ([out, "--undo", "there"], "--undo takes nothing beside it, and output was"),
        (["--undo", "there", "--top-k", "0"], "--undo takes nothing beside it, and top_k was 0"),
        (["--undo", "there", "--max-score", "0"], "--undo takes nothing beside it, and max_score was 0"),
        (["--undo", "there"], f"there holds no {RECEIPT}"),
        (["--undo", "gone"], f"gone holds no {RECEIPT}"),
    ):
        assert message in refused("curate", *arguments)


def test_the_gate_has_three_exit_codes(out, audited, capsys, refused):
    assert command(["check", out, "--fdr", "0.999999", "--max-flagged", "1", "--junit", "ok.xml"]) == 0
    assert "of 60 distinct images" in capsys.readouterr().out
    assert ElementTree.parse("ok.xml").getroot().get("failures") == "0"
    assert command(["check", out, "--fdr", "0.999999", "--max-flagged", "0", "--junit", "bad.xml", "--markdown"]) == 1
    captured = capsys.readouterr()
    assert captured.out.startswith("### ❌ volgrowth check: failed")
    assert "> ⚠️ Without held-out images the error rate is an assumption" in captured.out.replace("\\", "")
    assert captured.err == ""
    assert ElementTree.parse("bad.xml").getroot().get("failures") == "1"
    assert "--max-flagged 2: expected a share" in refused("check", out, "--max-flagged", "2")
    assert "holds no audit" in refused("check", "nowhere", "--junit", "no.xml")
    assert "check has no option --sead" in refused("check", out, "--sead", "1")


LIMITED = """
import resource, sys
from volgrowth.analysis.deciding import make_list
from volgrowth.analysis.policy import CurationPolicy
from volgrowth.audit.output.result import open_audit
from volgrowth.curation import apply_list
from volgrowth.errors import OutputError
audit = open_audit(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
try:
    apply_list(audit, make_list(audit, CurationPolicy("top_k", 0)), "new")
except OutputError as error:
    print(error)
"""


@pytest.mark.parametrize("kind", ["parquet", "saved", "tars"])
def test_a_full_disk_leaves_nothing(request, kind):
    audit = request.getfixturevalue(kind)
    arguments = [sys.executable, "-c", LIMITED, audit.store.url]
    process = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert "new cannot be written (" in process.stdout
    assert "File too large" in process.stdout
    assert os.listdir() == []
    assert command(["curate", audit.store.url, "--top-k", "0", "--apply", "new"]) == 0


@pytest.mark.parametrize(("end", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_when_it_is_ended_in_the_middle_there_is_nothing(run, images, bucket, proxy, tmp_path, end, code):
    write_parquet(tmp_path / "data/a.parquet", images)
    bucket.upload(tmp_path / "data", "data")
    shutil.rmtree(tmp_path / "data")
    run(f"{bucket.url}/data", tmp_path / "out")
    before = len(proxy.requests)
    assert command(["curate", "out", "--top-k", "3", "--apply", "whole"]) == 0
    reads = [request for request in proxy.requests[before:] if re.match("GET .*data/a.parquet", request)]
    # the last read is of what is being written; those before it compare the data set with what was audited
    fault = proxy.fail("slow", method="GET", path="data/a.parquet", after=len(reads) - 1, seconds=600)
    process = start_volgrowth(["curate", "out", "--top-k", "3", "--apply", "new"], tmp_path)
    wait_for(lambda: bool(list(tmp_path.glob(".new.*.part"))), process)
    process.send_signal(end)
    proxy.faults.remove(fault)
    _, errors = process.communicate()
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    assert not (tmp_path / "new").exists()
    assert (len(list(tmp_path.glob(".new.*"))) == 0) == (end == signal.SIGINT)
    assert command(["curate", "out", "--list", "out/curation.parquet", "--apply", "new"]) == 0
    assert pq.read_table("new").num_rows < ROWS
