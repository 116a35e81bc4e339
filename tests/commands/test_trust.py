"""What an output names is opened and run only if this account audited into it, or says that it trusts it."""

import json
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import volgrowth as vg
from volgrowth.cli import run_command
from volgrowth.errors import OutputError
from volgrowth.storage import made_here

EVIL = """
from pathlib import Path

Path("code-ran").touch()


def load(device, dtype):
    raise RuntimeError("it ran")
"""


@pytest.fixture(scope="module")
def audited(tiny_model: Path, digit_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trusted")
    data = shutil.copy(digit_file, folder / "digits.parquet")
    config = vg.AuditConfig.build(model=str(tiny_model), data=str(data), output=str(folder / "out"), engine="local")
    vg.run_audit(config, quiet=True)
    return folder


@pytest.fixture
def out(audited: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, in the working directory."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(audited / "out", tmp_path / "out"))


@pytest.fixture
def another_account(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setattr(made_here, "_remembered", set())
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("another")))


def forge(out: Path, **data: str) -> None:
    """Have the manifest name a factory that lies in the working directory, and other data."""
    Path("evil.py").write_text(EVIL)
    manifest = json.loads((out / "manifest.json").read_text())
    del manifest["sha256"]
    manifest["config"]["model"] = manifest["model"]["name"] = "factory:evil:load"
    manifest["data"] |= data
    (out / "manifest.json").write_text(json.dumps(manifest))


def pictures(out: Path) -> int:
    return (out / "report.html").read_text().count("data:image/")


def test_verify_runs_no_code_that_an_output_names(out, capsys):
    forge(out)
    assert run_command(["verify", "out", "--samples", "4", "--engine", "local"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "out was not audited by this account on this machine" in said
    assert "the model factory:evil:load" in said
    assert "add --trust-output" in said
    assert not Path("code-ran").exists()
    with pytest.raises(OutputError, match="trust_output=True"):
        vg.verify_audit("out", 4, engine="local", quiet=True)
    assert run_command(["verify", "out", "--samples", "4", "--engine", "local", "--trust-output"]) == 2
    assert "it ran" in capsys.readouterr().err
    assert Path("code-ran").exists()


@pytest.mark.parametrize("name", ["s3://nobody-has-this-bucket/data", "http://127.0.0.1:9/data.parquet", "org/name"])
def test_a_report_contacts_no_host_that_an_output_names(out, capsys, name):
    before = pictures(out)
    assert before
    forge(out, name=name)
    assert run_command(["report", "out"]) == 0
    assert "the report shows no pictures: " in capsys.readouterr().err
    assert pictures(out) == 0
    assert not Path("code-ran").exists()


@pytest.mark.usefixtures("another_account")
def test_tables_of_another_account_are_read_and_its_data_is_not(out, audited, capsys):
    data = audited / "digits.parquet"
    data.rename(audited / "moved")
    try:
        for arguments in (["check", "out"], ["diff", "out", "out"], ["check-output", "out"]):
            assert run_command(arguments) in (0, 1, 2), arguments
            assert "trust" not in capsys.readouterr().err
        assert run_command(["curate", "out", "--top-k", "2", "--list", "list.csv"]) == 0
        assert run_command(["report", "out", "--redact"]) == 0
        assert "trust" not in capsys.readouterr().err
    finally:
        (audited / "moved").rename(data)


@pytest.mark.usefixtures("another_account")
def test_data_of_another_account_is_opened_once_it_is_trusted(out, capsys):
    assert run_command(["report", "out"]) == 0
    assert "the report shows no pictures: out was not audited by this account" in capsys.readouterr().err
    assert pictures(out) == 0
    assert run_command(["report", "out", "--trust-output"]) == 0
    assert capsys.readouterr().err == ""
    assert pictures(out) > 0
    assert run_command(["curate", "out", "--top-k", "2", "--apply", "new"]) == 2
    assert "copying the data would use what it names" in capsys.readouterr().err
    assert not Path("new").exists()
    assert run_command(["curate", "out", "--top-k", "2", "--apply", "new", "--trust-output"]) == 0
    with pytest.raises(OutputError, match="opening the data would use what it names"):
        vg.open_audit("out").open_data()
    with pytest.raises(OutputError, match="opening the data"):
        vg.open_audit("out").clusters()
    assert vg.open_audit("out", trust_output=True).open_data().num_rows > 0


@pytest.mark.usefixtures("another_account")
def test_who_repeats_the_audit_has_named_model_and_data(out, audited, tiny_model, capsys):
    audit = ["audit", str(tiny_model), str(audited / "digits.parquet"), "--output", "out", "--engine", "local"]
    assert run_command(audit) == 0
    assert run_command(["report", "out"]) == 0
    assert "trust" not in capsys.readouterr().err
    assert pictures(out) > 0
    manifest = json.loads((out / "manifest.json").read_text())
    del manifest["sha256"]
    manifest["data"]["name"] = str(audited / "other.parquet")  # the settings name the right one
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert run_command(audit) == 2
    assert f"its data set is {audited / 'other.parquet'} there" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["{folder}/digits.parquet", "../digits.parquet", "a/../../digits.parquet"])
def test_no_file_is_shown_that_a_listing_names_outside_the_data(out, audited, capsys, name):
    name, file = name.format(folder=audited), out / "listing/scores-0-00000.parquet"
    table = pq.read_table(file)
    forged = table.set_column(0, table.schema.field("name"), pa.array([os.fsencode(name)], pa.binary()))
    pq.write_table(forged.replace_schema_metadata(), file)
    assert run_command(["report", "out"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "out/listing/scores-0-00000.parquet is damaged (it names" in said
    assert f"{name!r}, which is not below" in said
    assert pictures(out) == 0


@pytest.mark.parametrize("what", ["figures", "findings.parquet", "pipe"])
def test_links_of_another_account_lead_nowhere(out, tmp_path, request, capsys, what):
    mine = tmp_path / "mine"
    mine.mkdir()
    if what == "pipe":
        os.mkfifo(out / "pipe")
    else:
        (out / what).rename(mine / what)
        (out / what).symlink_to(mine / what)
    assert run_command(["report", "out"]) == 0  # this account put it there
    before = {path: path.stat().st_mtime_ns for path in mine.rglob("*")}
    request.getfixturevalue("another_account")
    for arguments in (["report", "out"], ["check", "out"], ["diff", "out", "out"], ["curate", "out", "--top-k", "1"]):
        capsys.readouterr()
        assert run_command(arguments) == 2
        assert f"{out / what} in it is" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in mine.rglob("*")} == before
    (out / what).unlink()
    if what != "pipe":
        (mine / what).rename(out / "part")
        (out / what).symlink_to("part")  # stays inside
    vg.open_audit(str(out))
