"""Results go to MLflow's own file store and to W&B's offline mode, and a tracker that fails says so."""

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import volgrowth as vg
from tests.audit.output.test_views import ROWS, small_audit
from volgrowth.audit.output.result import Audit
from volgrowth.cli import run_command
from volgrowth.errors import OutputError, UsageError


@pytest.fixture(scope="module")
def made(tiny_model: Path, digits: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Audit:
    return small_audit(tmp_path_factory.mktemp("tracked"), tiny_model, digits)


@pytest.fixture
def audit(made: Audit, tmp_path: Path) -> Audit:
    shutil.copytree(made.store.url, tmp_path / "out")
    return vg.open_audit(str(tmp_path / "out"))


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    mlflow = pytest.importorskip("mlflow", exc_type=ImportError)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return mlflow.MlflowClient(tracking_uri=f"file:{tmp_path / 'mlruns'}")


def runs(client: Any, experiment: str = "volgrowth") -> list[Any]:
    return list(client.search_runs([client.get_experiment_by_name(experiment).experiment_id]))


def files(client: Any, run: Any) -> list[str]:
    return sorted(each.path for each in client.list_artifacts(run.info.run_id))


def test_an_audit_has_one_run_of_mlflow_that_later_commands_go_on_with(audit, client, tmp_path, capsys):
    to, out = f"mlflow:file:{tmp_path / 'mlruns'}", audit.store.url
    assert run_command(["report", out, "--log-to", to]) == 0
    first = runs(client)
    assert len(first) == 1
    said = capsys.readouterr().out
    assert f"logged: MLflow experiment volgrowth, run {first[0].info.run_id}" in said
    assert files(client, first[0]) == ["report.html", "summary.json"]
    numbers, settings = first[0].data.metrics, first[0].data.params
    assert numbers["tests"] == audit.summary["detection"]["tests"] > 0
    assert (numbers["rows"], numbers["rows_scored"]) == (ROWS, ROWS)
    assert "samples" not in numbers
    assert settings["measure.preset"] == audit.frozen.config["measure"]["preset"]
    assert settings["model_hash"] == audit.frozen.model.hash
    assert not {"output", "workers", "log_json"} & settings.keys()
    assert first[0].info.status == "FINISHED"

    assert run_command(["curate", out, "--fdr", "0.1", "--list", str(tmp_path / "list.csv"), "--log-to", to]) == 0
    again = runs(client)
    assert [run.info.run_id for run in again] == [first[0].info.run_id]
    assert files(client, again[0]) == ["curation.parquet", "report.html", "summary.json"]
    kept = client.download_artifacts(again[0].info.run_id, "summary.json", str(tmp_path))
    assert json.loads(Path(kept).read_text())["created"] == audit.summary["created"]


def test_a_list_of_an_earlier_state_stays_behind_and_is_named(audit, client, tmp_path, capsys):
    to, store = f"mlflow:file:{tmp_path / 'mlruns'}", audit.store
    assert run_command(["curate", store.url, "--fdr", "0.1"]) == 0
    table = store.read_table("curation.parquet")
    names = pa.array(["0123456789abcdef"] * ROWS)
    store.write_table("curation.parquet", table.set_column(table.column_names.index("audit"), "audit", names), {})
    capsys.readouterr()
    assert run_command(["report", store.url, "--log-to", to]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert (
        f"{store.path('curation.parquet')} is not logged: it is of another audit, or of this one before it was" in said
    )
    assert f"(0123456789abcdef in column audit); run `volgrowth curate {store.url}` again" in said
    assert files(client, runs(client)[0]) == ["report.html", "summary.json"]


def test_the_redacted_report_goes_in_place_of_the_pictures(audit, client, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "releases")
    to = f"mlflow:file:{tmp_path / 'mlruns'}"
    assert run_command(["report", audit.store.url, "--redact", "--log-to", to]) == 0
    assert files(client, runs(client, "releases")[0]) == ["report-redacted.html", "summary.json"]


def test_the_audit_itself_logs_and_one_that_is_finished_too(tiny_model, digit_file, client, tmp_path, capsys):
    to, out = f"mlflow:file:{tmp_path / 'mlruns'}", str(tmp_path / "small")
    command = ["audit", str(tiny_model), str(digit_file), "--output", out, "--engine", "local", "--trust-model"]
    command += ["--preset", "screen", "--log-to", to]
    assert run_command(command) == 0
    assert run_command(command) == 0
    assert capsys.readouterr().out.count("logged: ") == 2
    assert len(runs(client)) == 1


def test_a_server_that_does_not_answer_is_asked_for_seconds_only(audit, client, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    out = audit.store.url
    assert run_command(["report", out, "--log-to", "mlflow:http://127.0.0.1:9"]) == 0
    assert "not logged, and all else is done: " in " ".join(capsys.readouterr().err.split())
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES")
    with pytest.raises(OutputError):
        vg.log_audit(audit, "mlflow:nonsense://place")
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "3"


def test_a_tracker_that_fails_is_said_and_the_command_is_done(audit, client, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE")
    to = f"mlflow:file:{tmp_path / 'refused'}"
    assert run_command(["report", audit.store.url, "--log-to", to]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "not logged, and all else is done: " in said
    assert "The filesystem tracking backend" in said
    assert f"`volgrowth report {audit.store.url} --log-to {to}` does that" in said
    assert "Traceback" not in said
    with pytest.raises(OutputError, match="could not be logged to mlflow:"):
        vg.log_audit(audit, to)


def test_wandb_has_the_numbers_the_settings_and_the_files_offline(audit, tmp_path, monkeypatch):
    pytest.importorskip("wandb", exc_type=ImportError)
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    assert vg.log_audit(audit, "wandb:memorization").startswith("W&B offline, in ")
    stored = list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert len(stored) == 1
    written, until = stored[0].read_bytes(), time.monotonic() + 60
    while b"summary.json" not in written and time.monotonic() < until:  # a process of W&B writes the file
        time.sleep(0.2)
        written = stored[0].read_bytes()
    tests = audit.summary["detection"]["tests"]
    for said in ("memorization", "model_hash", audit.frozen.model.hash, "rows_scored", "tests", f"{tests}"):
        assert said.encode() in written, said
    for name in ("report.html", "summary.json"):
        assert name.encode() in written, name


@pytest.mark.parametrize("to", ["mlflow", "wandb", "wandb:", "comet:project", "", ":place", "file:runs"])
def test_what_is_no_tracker_is_refused_before_anything_is_done(to, audit, capsys):
    page = Path(audit.store.path("report.html"))
    page.unlink()
    for command in (
        ["report", audit.store.url],
        ["curate", audit.store.url, "--fdr", "0.1"],
        ["verify", audit.store.url, "--samples", "2"],
        ["audit", "model", "data", "--output", audit.store.url],
    ):
        assert run_command([*command, "--log-to", to]) == 2
        said = capsys.readouterr().err
        assert f"--log-to {to!r}: expected mlflow:URI" in " ".join(said.split())
        assert "Traceback" not in said
    assert not page.exists()


def test_a_tracker_that_is_not_installed_is_a_sentence_with_the_command(audit, monkeypatch):
    for name, package in (("mlflow", "mlflow-skinny"), ("wandb", "wandb")):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(UsageError, match=f"{name} cannot be imported .*: pip install {package}$"):
            vg.log_audit(audit, f"{name}:place")


@pytest.mark.parametrize("wrong", [None, 5, b"mlflow:"])
def test_what_is_no_text_and_what_is_no_audit_is_refused(wrong, audit):
    with pytest.raises(UsageError, match=r"to is .*: expected a finished audit"):
        vg.log_audit(audit, wrong)
    with pytest.raises(UsageError, match=r"audit is .*: expected a finished audit"):
        vg.log_audit(wrong, "mlflow:")
