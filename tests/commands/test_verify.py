"""`volgrowth verify` through the command line, and on the demo, where the truth is known."""

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import volgrowth as vg
from tests.conftest import start_volgrowth, wait_for
from volgrowth.audit.sampling.drawing import DrawingWorker, read_images
from volgrowth.audit.scoring.pilot import PilotWorker
from volgrowth.cli import run_command
from volgrowth.demo.cases import digit_images, digits_case, write_image_parquet
from volgrowth.demo.truth import find_reproduced

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def audited(tiny_model, digits, digit_file, tmp_path_factory):
    """An audit with a model that knows nothing."""
    folder = tmp_path_factory.mktemp("verified")
    write_image_parquet(folder / "held.parquet", digits[200:290], [f"held-{row}" for row in range(90)])
    settings = {"holdout": str(folder / "held.parquet"), "output": str(folder / "out"), "id_column": "name"}
    settings["engine"] = "local"
    vg.run_audit(vg.AuditConfig.build(model=str(tiny_model), data=str(digit_file), **settings), quiet=True)
    return folder / "out"


def drawn(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("verification/sample-*.parquet")}


def verify(output: Path, *options: object) -> int:
    """The command, by a worker in this process; its exit code."""
    return run_command(["verify", str(output), *map(str, options), "--engine", "local"])


def test_few_samples_say_so_and_later_ones_keep_them(audited, capsys):
    assert verify(audited, "--samples", 130) == 0
    said = capsys.readouterr()
    assert "130 samples drawn from the model reproduce 0 images of the data set" in said.out
    assert "130 samples are few" in said.err
    assert "2,371 samples see it with 95%" in said.err
    before = drawn(audited)
    assert sorted(before) == ["sample-00000.parquet", "sample-00001.parquet"]
    page = (audited / "report.html").read_text()
    assert "130 samples drawn from the model" in page
    assert verify(audited, "--samples", 140) == 0
    after = drawn(audited)
    assert after["sample-00000.parquet"] == before["sample-00000.parquet"]
    assert after["sample-00001.parquet"] > before["sample-00001.parquet"]
    found = vg.open_audit(str(audited))
    assert found.summary["verification"]["samples"] == 140
    assert set(found.findings["verified_hits"].to_pylist()) == {0}
    assert pq.read_table(audited / "verification/samples.parquet").num_rows == 140


def test_the_batch_size_that_the_audit_found_is_used(tiny_model, digit_file, tmp_path, monkeypatch):
    monkeypatch.setattr(PilotWorker, "choose_batch", lambda worker, shard: 5)
    settings = {"output": str(tmp_path / "out"), "batch_size": "auto", "engine": "local"}
    vg.run_audit(vg.AuditConfig.build(model=str(tiny_model), data=str(digit_file), **settings), quiet=True)
    draw, sizes = DrawingWorker.draw, []

    def draw_and_tell(worker, drawing):
        sizes.append(worker.batch.size)
        return draw(worker, drawing)

    monkeypatch.setattr(DrawingWorker, "draw", draw_and_tell)
    assert verify(tmp_path / "out", "--samples", 3) == 0
    assert set(sizes) == {5}


def test_what_is_interrupted_goes_on(audited, tmp_path):
    for path in audited.glob("verification/*"):
        path.unlink()
    process = start_volgrowth(["verify", audited, "--samples", 2000], tmp_path)
    wait_for(lambda: bool(drawn(audited)), process)
    os.killpg(process.pid, signal.SIGTERM)  # as systemd does
    _, errors = process.communicate()
    assert process.returncode == 130, errors
    assert "the same command goes on" in errors
    assert "Traceback" not in errors
    before = drawn(audited)
    assert verify(audited, "--samples", 256) == 0
    assert before.items() >= {name: t for name, t in drawn(audited).items() if name in before}.items()


def test_what_cannot_be_verified(audited, tmp_path, capsys):
    assert verify(tmp_path / "nothing", "--samples", 100) == 2
    assert "holds no audit" in capsys.readouterr().err
    assert verify(audited, "--samples", 0) == 2
    assert "--samples 0: expected at least 1; 2,371 say something" in capsys.readouterr().err


def test_levels_to_stop_at(audited, capsys):
    assert verify(audited, "--samples", 100, "--stop-level", 0) == 2
    assert "--stop-level 0: expected a noise level above 0" in capsys.readouterr().err


def paled_images(device: torch.device, dtype: torch.dtype) -> vg.EmpiricalDenoiser:
    """Return a factory's model, which makes the first digits with half of their contrast and lighter; and one flat."""
    made = np.concatenate([digit_images()[:40] // 2 + 90, np.full((1, 1, 8, 8), 128, np.uint8)])
    denoiser = vg.EmpiricalDenoiser(torch.from_numpy(made / 127.5 - 1).to(device, torch.float64))
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    denoiser.schedule = vg.DDPMSchedule((1 - betas).cumprod(0))
    return denoiser


def test_paler_copies_are_hits_by_the_perceptual_distance_alone(tmp_path, capsys):
    digits = digit_images()
    write_image_parquet(tmp_path / "data.parquet", digits[:150], [f"{row}" for row in range(150)])
    write_image_parquet(tmp_path / "held.parquet", digits[200:290], [f"held-{row}" for row in range(90)])
    settings = {"holdout": str(tmp_path / "held.parquet"), "output": str(tmp_path / "out"), "id_column": "name"}
    model = f"factory:{__name__}:paled_images"
    config = vg.AuditConfig.build(model=model, data=str(tmp_path / "data.parquet"), **settings, engine="local")
    vg.run_audit(config, quiet=True)
    hits = {}
    for distance in ("pixels", "perceptual"):
        assert verify(tmp_path / "out", "--samples", 200, "--distance", distance) == 0
        found = vg.open_audit(str(tmp_path / "out"))
        assert found.summary["verification"]["distance"] == distance
        hits[distance] = np.array(found.findings["verified_hits"].to_pylist())
        samples = pq.read_table(tmp_path / "out/verification/samples.parquet")
        none = samples["distance"].null_count
        assert 0 < none < 20 if distance == "perceptual" else none == 0  # the flat ones look like nothing
    assert hits["pixels"].sum() < 20
    assert hits["perceptual"][:40].sum() > 150
    assert hits["perceptual"][40:].sum() == 0
    assert "without their brightness, tint and contrast" in (tmp_path / "out/report.html").read_text()
    capsys.readouterr()
    assert verify(tmp_path / "out", "--samples", 200, "--distance", "lpips") == 2
    assert "--distance lpips: expected one of pixels, perceptual" in capsys.readouterr().err
    assert verify(tmp_path / "out", "--samples", 200, "--distance", "perceptual", "--rates") == 2
    assert "rates count copies by distances in pixels" in capsys.readouterr().err


def test_what_samples_proved_before_an_audit_grew_is_said_to_be_missing(tmp_path, capsys):
    digits, out = digit_images(), tmp_path / "out"
    (tmp_path / "data").mkdir()
    write_image_parquet(tmp_path / "data/a.parquet", digits[:150], [f"{row}" for row in range(150)])
    write_image_parquet(tmp_path / "held.parquet", digits[200:290], [f"held-{row}" for row in range(90)])
    given = [
        "--holdout",
        str(tmp_path / "held.parquet"),
        "--engine",
        "local",
        "--output",
        str(out),
        "--id-column",
        "name",
    ]
    given = ["audit", f"factory:{__name__}:paled_images", str(tmp_path / "data"), *given]
    curate = ["curate", str(out), "--fdr", "0.1", "--list"]
    assert run_command(given) == 0
    asked = ("--samples", 200, "--distance", "perceptual")
    assert verify(out, *asked) == 0
    proven = vg.open_audit(str(out)).summary["verification"]["reproduced_images"]
    assert proven > 10
    assert run_command([*curate, str(tmp_path / "before.csv")]) == 0
    assert "Samples that" not in capsys.readouterr().out
    write_image_parquet(tmp_path / "data/b.parquet", digits[150:160], [f"{row}" for row in range(150, 160)])
    assert run_command([*given, "--extend"]) == 0
    said = "Samples that `volgrowth verify` drew were compared with this audit as it was before"
    assert f"but: {said}" in capsys.readouterr().out
    page = (out / "report.html").read_text()
    assert said.replace("`", "") in page.replace("<code>", "").replace("</code>", "").replace("`", "")
    assert "Nearest sample" not in page
    assert run_command(["check", str(out), "--max-flagged", "0.99"]) == 2
    assert said in capsys.readouterr().out
    assert run_command([*curate, str(tmp_path / "list.csv")]) == 0
    assert said in capsys.readouterr().out
    assert run_command(["check-output", str(out)]) == 2  # the results of samples; their figures are gone
    checked = capsys.readouterr()
    assert "verification/samples.parquet: it is of the audit as it was before" in checked.err
    assert "not written by volgrowth" not in checked.out + checked.err
    assert verify(out, *asked) == 0
    found = vg.open_audit(str(out)).summary
    assert found["verification"]["reproduced_images"] == proven
    assert not any(said in caveat for caveat in found["caveats"])
    assert run_command(["check-output", str(out)]) == 0


@pytest.mark.timeout(1200)
class TestDemo:
    def test_hits_are_those_of_the_whole_matrix_of_distances(self, demo):
        audit = vg.open_audit(str(demo / "audit"))
        case = digits_case()
        names = sorted(path.name for path in (demo / "audit/verification").glob("sample-*.parquet"))
        samples = np.concatenate([read_images(audit.store, f"verification/{name}", (1, 8, 8)) for name in names])
        assert len(samples) == audit.summary["verification"]["samples"]
        # the demo's plain images hold a few pairs of equal ones, which the audit knows as identical
        identical = audit.findings["identical"].to_numpy()
        family = np.unique(identical, return_inverse=True)[1]
        truth = find_reproduced(samples, case.train, np.unique(case.holdout, axis=0), family)
        assert audit.findings["verified_hits"].to_numpy().tolist() == truth.hits[family].tolist()
        assert audit.summary["verification"]["min_hits"] == truth.min_hits

    def test_flags_keep_their_promise(self, demo):
        """Realised false-discovery rate at 20% <= .30 with power >= .6, over distinct images."""
        audit = vg.open_audit(str(demo / "audit"))
        findings = audit.findings
        first = findings["row"].to_numpy() == findings["identical"].to_numpy()
        truth = np.isin(findings["row"].to_numpy(), audit.summary["verification"]["rows"])[first]
        flags = findings["q_value"].to_numpy()[first] <= 0.2
        assert (flags & ~truth).sum() / flags.sum() <= 0.30
        assert (flags & truth).sum() / truth.sum() >= 0.6

    def test_flagged_images_return_from_noise_and_their_controls_do_not(self, demo):
        returns = vg.open_audit(str(demo / "audit")).summary["verification"]["returns"]
        level = returns["levels"].index(0.5)
        assert returns["flagged"][level] >= 0.6
        assert returns["controls"][level] <= 0.3
        assert returns["flagged"][-1] <= returns["flagged"][0]

    def test_the_interval_holds_the_precision(self, demo):
        found = vg.open_audit(str(demo / "audit")).summary["verification"]
        low, high = found["precision_interval"]
        assert low < found["flagged_reproduced"] / found["flagged"] < high or high == 1
        assert found["warnings"] == []


@pytest.mark.timeout(1200)
def test_a_sampler_that_stops_early_copies_less(demo, tmp_path):
    """The demo's model reproduces what was planted; stopped at level 2, mostly no longer."""
    output = tmp_path / "audit"
    shutil.copytree(demo / "audit", output)
    early = {}
    for level in (0.02, 2.0):
        found = vg.verify_audit(str(output), 256, stop_level=level, engine="local", quiet=True).summary["verification"]
        assert found["stopped"]["level"] == level
        early[level] = found["stopped"]["early"]
        usual = found["stopped"]["usual"]
    assert usual["copies"] > 50
    assert abs(early[0.02]["copies"] - usual["copies"]) < 0.1 * usual["copies"]
    assert early[2.0]["copies"] < 0.5 * usual["copies"]
    assert early[2.0]["distance"] > usual["distance"] * 0.5
    assert "stopped at noise level 2" in (output / "report.html").read_text()
