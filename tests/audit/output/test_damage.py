"""Every file of an output is damaged in many ways: commands mend it, or name it in a sentence without a traceback."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import volgrowth as vg
from volgrowth.audit.output import lock
from volgrowth.cli import run_command
from volgrowth.demo.cases import write_image_parquet
from volgrowth.errors import OutputError

SEED = 3


def wrong(path: Path) -> None:
    """The right kind of file with the wrong content."""
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"a": [1, 2]}), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(dict.fromkeys(json.loads(path.read_text()), 5)))
    else:
        path.write_bytes(b"5")


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


HARMS: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "garbage": lambda path: path.write_bytes(bytes(range(256))),
    "list": lambda path: path.write_bytes(b"[]"),
    "object": lambda path: path.write_bytes(b"{}"),
    "null": lambda path: path.write_bytes(b"null"),
    "wrong": wrong,
    "missing": lambda path: path.unlink(),
    "folder": folder_instead,
}
MADE_AGAIN = (
    "scores/part-00001.parquet",
    "holdout/part-00000.parquet",
    "findings.parquet",
    "holdout-findings.parquet",
    "summary.json",
    "report.html",
    "listing/scores-0-00000.parquet",
    "listing/holdout-0-00000.parquet",
    "noise-floor.json",
)
NEEDED = ("manifest.json", *MADE_AGAIN)


@pytest.fixture(scope="module")
def finished(digits: np.ndarray, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damage")
    shutil.copytree(tiny_model, folder / "model")
    write_image_parquet(folder / "train.parquet", digits[:80], [str(row) for row in range(80)])
    write_image_parquet(folder / "held.parquet", digits[200:310], [str(row) for row in range(110)])
    assert run_command(command(folder, folder / "out")) == 0
    return folder


def command(folder: Path, out: Path) -> list[str]:
    names = [str(folder / "model"), str(folder / "train.parquet"), "--holdout", str(folder / "held.parquet")]
    how = ["--engine", "local", "--shard-size", "40", "--set", "measure.preset=paper"]
    return ["audit", *names, "--output", str(out), *how]


@pytest.fixture
def out(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(lock, "WATCH_SECONDS", 0.1)
    shutil.copytree(finished / "out", tmp_path / "out")
    return tmp_path / "out"


def some(names: tuple[str, ...], harms: dict[str, Callable[[Path], object]], count: int) -> list[tuple[str, str]]:
    """A seeded part of all pairs."""
    pairs = [(name, harm) for name in names for harm in harms]
    return [pairs[index] for index in sorted(np.random.default_rng(SEED).permutation(len(pairs))[:count])]


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    capsys.readouterr()
    code = run_command(arguments)
    return code, capsys.readouterr().err


@pytest.mark.parametrize(("name", "harm"), some(NEEDED, HARMS, 40))
def test_readers_of_a_damaged_output_say_so_in_one_sentence(out, finished, name, harm, capsys):
    whole = ["check-output", str(out)]
    assert run(whole, capsys)[0] == 0
    HARMS[harm](out / name)
    code, said = run(whole, capsys)
    assert code == (0 if (name, harm) == ("noise-floor.json", "missing") else 2)
    assert code == 0 or name.rpartition("/")[2] in said or "holds no audit" in said
    assert "Traceback" not in said
    other = str(finished / "out")
    for arguments in (["check", str(out)], ["curate", str(out), "--top-k", "3"], ["diff", other, str(out)]):
        code, said = run(arguments, capsys)
        assert code in (0, 1, 2)
        assert "Traceback" not in said, said


@pytest.mark.parametrize(("name", "harm"), some(MADE_AGAIN, {k: v for k, v in HARMS.items() if k != "folder"}, 10))
def test_the_same_audit_mends_what_it_can_make_again(out, finished, name, harm, capsys):
    before = vg.open_audit(str(finished / "out"))
    HARMS[harm](out / name)
    code, said = run(command(finished, out), capsys)
    assert code == 0, said
    assert name.rpartition("/")[0] in said
    assert run(["check-output", str(out)], capsys)[0] == 0
    again = vg.open_audit(str(out))
    assert again.scores.equals(before.scores)
    assert again.findings.equals(before.findings)


def test_a_manifest_that_is_none_is_named_by_every_command(out, finished, capsys):
    content = json.loads((out / "manifest.json").read_text())
    del content["sha256"]
    changes: list[dict[str, Any]] = [{"data": None}, {"config": {}}, {"model": []}, {"schema_version": 2}]
    for change in (*changes, {"versions": 3}):
        (out / "manifest.json").write_text(json.dumps({**content, **change}))
        for arguments in (command(finished, out), *([verb, str(out)] for verb in ("check-output", "check", "report"))):
            code, said = run(arguments, capsys)
            assert code == 2
            last = said.strip().splitlines()[-1]
            assert last.startswith("volgrowth: ")
            assert "manifest.json" in last or str(out) in last
    (out / "manifest.json").write_text(json.dumps(content))  # without its digest, as older versions wrote it
    assert run(["check-output", str(out)], capsys)[0] == 0


def test_columns_and_settings_that_are_gone_do_not_keep_an_output_from_being_read(out, finished, capsys):
    """As a version wrote them whose preset `standard` measured one loss more."""
    before, loss = vg.open_audit(str(out)), "loss_high"
    for name, column in (("findings.parquet", f"evidence_{loss}"), ("scores/part-00000.parquet", loss)):
        table = pq.read_table(out / name)
        further = pa.array(np.linspace(-1, 1, len(table)))
        pq.write_table(table.append_column(column, further), out / name)
    content = json.loads((out / "manifest.json").read_text())
    content["config"]["measure"] = {"preset": "standard", "norm_level": 0.1, "loss_level": 0.3, "high_level": 0.45}
    del content["sha256"]
    (out / "manifest.json").write_text(json.dumps(content))
    after = vg.open_audit(str(out))
    assert after.scores.equals(before.scores)
    assert after.findings.select(before.findings.column_names).equals(before.findings)
    for verb, codes in (("report", {0}), ("check", {0, 1, 2}), ("check-output", {0}), ("curate", {0})):
        code, said = run([verb, str(out), *(["--top-k", "3"] if verb == "curate" else [])], capsys)
        assert code in codes, said
        assert "Traceback" not in said
        assert "loss_high" not in said
    code, said = run([*command(finished, out), "--set", "measure.preset=standard"], capsys)
    assert (code, "high_level" in said) == (2, True), said


@pytest.mark.parametrize("name", ["findings.parquet", "scores/part-00001.parquet", "summary.json"])
def test_opening_an_audit_names_the_file_that_is_missing(out, name):
    vg.open_audit(str(out))
    (out / name).unlink()
    with pytest.raises(OutputError, match=rf"{name} is missing: run the same `volgrowth audit` again"):
        vg.open_audit(str(out))


def test_a_fragment_that_rots_while_an_audit_waits_to_be_finished_is_scored_again(out, finished, capsys):
    """Its footer is whole, so that only reading its rows tells."""
    before = vg.open_audit(str(finished / "out"))
    path = out / "scores/part-00000.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(data)
    (out / "_SUCCESS").unlink()
    code, said = run(command(finished, out), capsys)
    assert code == 0
    assert "part-00000.parquet is damaged (its pages have changed since they were written): its rows are scored" in said
    assert vg.open_audit(str(out)).findings.equals(before.findings)


def test_findings_of_other_scores_do_not_pass(out, capsys):
    store = vg.open_audit(str(out)).store
    table = store.read_table("findings.parquet")
    growth = pa.array(table["growth"].to_numpy() + 1)
    place = table.schema.get_field_index("growth")
    footer = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    store.write_table("findings.parquet", table.set_column(place, table.schema.field(place), growth), footer)
    code, said = run(["check-output", str(out)], capsys)
    assert code == 2
    assert said.startswith("findings.parquet: its rows, ids or growth are not those of the scores; run the same")


def test_an_unknown_file_is_not_verified_and_no_fault(out, capsys):
    (out / "notes.txt").write_text("mine")
    assert run_command(["check-output", str(out)]) == 0
    assert "not written by volgrowth, and not verified: notes.txt" in capsys.readouterr().out


def test_a_page_that_changed_is_written_again_by_the_report(out, capsys):
    page = out / "report.html"
    page.write_bytes(page.read_bytes() + b" ")
    code, said = run(["check-output", str(out)], capsys)
    assert (code, said) == (2, f"report.html: it has changed since it was written; run `volgrowth report {out}`\n")
    assert run(["report", str(out)], capsys)[0] == 0
    assert run(["check-output", str(out)], capsys)[0] == 0
