"""An audit of a model that is wired wrongly stops before it says anything, unless it is told to go on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import volgrowth as vg
from volgrowth.cli import run_command
from volgrowth.errors import ModelError

MODEL = "factory:tests.support.affine_flow"  # a module that Ray's workers can import too


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(model: str, data: Path, *more: str) -> list[str]:
    return [
        "audit", f"{MODEL}:{model}", str(data), "--output", "out", "--engine", "local",
        "--set", "trust_model=false", "--log-json", "log.jsonl", *more,
    ]  # fmt: skip


def events() -> list[str]:
    return [json.loads(line)["event"] for line in Path("log.jsonl").read_text().splitlines()]


def test_a_right_model_is_checked_once(folder: Path, digit_file: Path) -> None:
    assert run_command(command("load", digit_file)) == 0
    kept, audit = json.loads(Path("out/model-check.json").read_text()), vg.open_audit("out")
    del kept["sha256"]  # of the file's content
    assert (kept["verdict"], kept["images"], len(kept["levels"])) == ("right", 64, 4)
    assert audit.summary["model_check"] == kept
    assert not any("model" in caveat for caveat in audit.summary["caveats"])
    assert "Check of the model" in audit.store.read("report.html").decode()
    for name in ("_SUCCESS", "scores/part-00000.parquet"):
        Path("out", name).unlink()
    assert run_command(command("load", digit_file)) == 0
    assert events().count("model_check") == 1
    assert vg.open_audit("out").scores.equals(audit.scores)


def test_a_wrong_model_stops_the_audit_unless_it_is_trusted(
    folder: Path, digit_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):  # what failed is tried again
        assert run_command(command("turned", digit_file)) == 2
        said = capsys.readouterr().err
        assert f"{MODEL}:turned is not understood: time runs backwards. Over 64 images" in said
        assert "Give the network 1 - t where it gets t" in said
        assert "or go on with --trust-model" in said
        assert not Path("out/scores").exists()
    assert events().count("model_check") == 2
    assert run_command([*command("turned", digit_file), "--set", "trust_model=true"]) == 0
    assert events().count("model_check") == 2
    said = capsys.readouterr().out
    assert "but: The model failed its check and was trusted: time runs backwards" in said
    summary = vg.open_audit("out").summary
    assert any("failed its check" in caveat for caveat in summary["caveats"])
    assert "trust_model" not in vg.open_audit("out").manifest["config"]
    assert run_command(["plan", *command("turned", digit_file)[1:-2], "--output", "other"]) == 2


@pytest.mark.parametrize("readable", [3, 4])
def test_too_few_readable_images_are_said(readable: int, folder: Path, digits: np.ndarray) -> None:
    from volgrowth.sources import encode_png

    Path("images").mkdir()
    for row in range(12):
        Path(f"images/{row}.png").write_bytes(encode_png(digits[row]) if row < readable else b"none")
    assert run_command([*command("load", folder / "images"), "--max-failed", "1"]) == 0
    caveats = [caveat for caveat in vg.open_audit("out").summary["caveats"] if "not checked" in caveat]
    expected = "The model was not checked against these images: 3 images with finite answers, and 4 are needed."
    assert caveats == ([expected] if readable == 3 else [])


@pytest.mark.ray
def test_workers_on_ray_stop_too(
    ray_session: None, folder: Path, digit_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"model": f"{MODEL}:turned", "data": str(digit_file), "trust_model": False}
    with pytest.raises(ModelError, match=r"is not understood: time runs backwards"):
        vg.run_audit(vg.AuditConfig.build(**settings, output=str(folder / "ray"), workers=1), quiet=True)
