"""What is fastest on a device: the layout of weights, the size of micro-batches, and what is made of it."""

import json
from typing import Any

import numpy as np
import pytest
import torch

import volgrowth as vg
from tests.support.pipelines import build
from volgrowth.audit.engine import batch_size
from volgrowth.audit.engine.batch_size import rows_a_shard
from volgrowth.audit.output.result import Audit
from volgrowth.audit.scoring import pilot
from volgrowth.audit.scoring.pilot import PilotWorker, expected_bytes, seconds_of
from volgrowth.audit.workers.layout import convolution_weights, judge_layout, put_channels
from volgrowth.audit.workers.loading import DataWorker
from volgrowth.commands.audit import run_audit
from volgrowth.errors import UsageError
from volgrowth.models import load_model


def audit(model: object, data: object, output: object, **more: Any) -> Audit:
    settings = {"engine": "local", "batch_size": 16, "shard_size": 75, **more}
    config = vg.AuditConfig.build(model=str(model), data=str(data), output=str(output), **settings)
    return run_audit(config, quiet="loud" not in str(output))


def race(monkeypatch: pytest.MonkeyPatch, last: float) -> None:
    """Have channels-last take so many seconds, where channels first take one."""
    monkeypatch.setattr(pilot, "seconds_of", lambda launch, device: last if is_last(launch) else 1.0)


def is_last(launch: Any) -> bool:
    weights = [each for each in convolution_weights(launch.args[0].denoiser) if min(each.shape) > 1]
    return all(each.is_contiguous(memory_format=torch.channels_last) for each in weights)


@pytest.mark.parametrize(
    ("first", "last", "off", "low", "chosen"),
    [
        (1.0, 0.5, 1e-4, False, True),
        (1.0, 0.99, 0.0, False, False),
        (1.0, 2.0, 0.0, False, False),
        (1.0, 0.5, 1e-2, False, False),
        (1.0, 0.5, 1e-2, True, True),
        (1.0, 0.5, 0.1, True, False),
        (1.0, 0.5, float("nan"), False, False),
    ],
)
def test_channels_last_is_used_where_it_is_faster_and_right(first, last, off, low, chosen):
    layout = judge_layout(first, last, off, low)
    assert layout.last is chosen
    assert f"{first / last:.2f} times as fast" in str(layout.said)


def test_a_layout_changes_the_order_in_memory_and_nothing_else(tiny_model):
    denoiser: Any = load_model(str(tiny_model))
    before = [each.clone() for each in convolution_weights(denoiser)]
    assert before
    for last in (True, False):
        put_channels(denoiser, last)
        after = convolution_weights(denoiser)
        assert all(a.equal(b) for a, b in zip(before, after, strict=True))
        assert all(
            each.is_contiguous(memory_format=torch.channels_last) is last for each in after if min(each.shape) > 1
        )


def test_an_autoencoder_takes_the_layout_of_the_model(tmp_path):
    build("dit", tmp_path / "model")
    denoiser: Any = load_model(str(tmp_path / "model"))
    encoder, images = denoiser.codec.vae.encoder.conv_in, torch.rand(2, *denoiser.pixel_shape)
    first = denoiser.embed(images)
    put_channels(denoiser, True)
    assert encoder.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(denoiser.embed(images), first, atol=1e-5)


@pytest.mark.parametrize(("last", "chosen"), [(0.5, True), (2.0, False)])
def test_a_layout_is_measured_once_and_kept(tiny_model, digit_file, tmp_path, monkeypatch, last, chosen):
    race(monkeypatch, last)
    out = tmp_path / "out"
    found = audit(tiny_model, digit_file, out, channels_last="auto")
    arithmetic = found.summary["run"]["arithmetic"]
    assert arithmetic["channels_last"] is chosen
    assert arithmetic["batch_size"] == 16
    assert f"{1 / last:.2f} times as fast" in arithmetic["layout"]
    kept = json.loads((out / "batch-size.json").read_text())
    assert (kept["batch_size"], kept["channels_last"]) == (16, chosen)
    assert arithmetic["layout"] in (out / "report.html").read_text()
    growth = found.scores["growth"].to_numpy()
    monkeypatch.setattr(PilotWorker, "tune", lambda *anything: 1 / 0)  # not measured again
    (out / "_SUCCESS").unlink()
    next((out / "scores").iterdir()).unlink()
    np.testing.assert_array_equal(audit(tiny_model, digit_file, out, channels_last="auto").scores["growth"], growth)
    given = audit(tiny_model, digit_file, tmp_path / "given", channels_last=chosen)
    np.testing.assert_array_equal(given.scores["growth"], growth)
    assert given.summary["run"]["arithmetic"]["layout"] is None


def test_a_layout_that_was_lost_is_said(tiny_model, digit_file, tmp_path, monkeypatch, capsys):
    race(monkeypatch, 2.0)
    out = tmp_path / "out"
    audit(tiny_model, digit_file, out, channels_last="auto")
    assert "is lost" not in capsys.readouterr().err
    for path in (out / "batch-size.json", out / "_SUCCESS", next((out / "scores").iterdir())):
        path.unlink()
    audit(tiny_model, digit_file, out, channels_last="auto")
    assert f"{out}/batch-size.json is lost, which says how the weights lay in memory" in capsys.readouterr().err


def test_where_nothing_is_asked_a_cpu_measures_no_layout(tiny_model, digit_file, tmp_path, monkeypatch):
    monkeypatch.setattr(PilotWorker, "tune", lambda *anything: 1 / 0)
    assert audit(tiny_model, digit_file, tmp_path / "out").summary["run"]["arithmetic"]["channels_last"] is False
    assert not (tmp_path / "out/batch-size.json").exists()


class Flat(vg.GaussianDenoiser):
    image_shape = (1, 8, 8)


def flat(device: object, dtype: object) -> vg.Denoiser:
    return Flat(0.0, 0.3)


def test_a_network_without_convolutions_has_no_layout(digit_file, tmp_path):
    found = audit(f"factory:{__name__}:flat", digit_file, tmp_path / "out", channels_last="auto", trust_model=True)
    arithmetic = found.summary["run"]["arithmetic"]
    assert (arithmetic["channels_last"], arithmetic["layout"]) == (None, None)


def test_a_resume_on_another_device_says_where_its_batch_size_comes_from(
    tiny_model, digit_file, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(PilotWorker, "choose_batch", lambda worker, shard: 5)
    out = tmp_path / "loud"

    def on(device: str) -> Audit:
        monkeypatch.setattr(DataWorker, "device_name", property(lambda worker: device))
        return audit(tiny_model, digit_file, out, batch_size="auto")

    assert on("A100").summary["run"]["tuned_on"] == "A100"
    assert "goes on with micro-batches" not in capsys.readouterr().err
    (out / "_SUCCESS").unlink()
    next((out / "scores").iterdir()).unlink()
    summary = on("H100").summary
    said = "this audit goes on with micro-batches of 5 images, which were the fastest on A100, on H100"
    assert capsys.readouterr().err.count(said) == 1
    assert summary["run"]["device_names"] == ["A100", "H100"]
    assert "5 images, the fastest on A100; not tried on H100" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("batch", "rows", "workers", "expected"),
    [
        (64, 1_000_000, 1, 2048),
        (512, 1_000_000, 1, 16_384),
        (512, 50_000, 4, 1536),  # every worker gets some shards, of whole micro-batches
        (512, 5000, 8, 1024),
        (8, 1_000_000, 1, 1024),
    ],
)
def test_a_shard_beside_a_gpu_has_many_micro_batches(batch, rows, workers, expected):
    assert rows_a_shard(batch, rows, workers, usual=1024) == expected


def test_the_size_of_shards_is_settled_once(tiny_model, digit_file, tmp_path, monkeypatch):
    monkeypatch.setattr(batch_size, "uses_gpus", lambda session: True)
    monkeypatch.setattr(PilotWorker, "choose_batch", lambda worker, shard: 5)
    monkeypatch.setattr(batch_size, "rows_a_shard", lambda *sizes: 2000)
    settings = {"model": str(tiny_model), "data": str(digit_file), "engine": "local", "output": str(tmp_path / "out")}
    config = vg.AuditConfig.build(**settings)
    assert run_audit(config, quiet=True).frozen.shard_rows == 2000
    monkeypatch.setattr(batch_size, "uses_gpus", lambda session: False)
    monkeypatch.setattr(PilotWorker, "tune", lambda *anything: 1 / 0)
    (tmp_path / "out/_SUCCESS").unlink()
    next((tmp_path / "out/scores").iterdir()).unlink()
    assert run_audit(config, quiet=True).frozen.shard_rows == 2000


def test_what_a_size_takes_is_expected_of_the_smaller_ones():
    """1 GiB of weights and .5 an image: of a size that does not fit the device is not even asked."""
    taken = {1: 15, 2: 20, 4: 30}
    assert expected_bytes({}, 1) == 0
    assert expected_bytes({1: 15}, 2) == 15
    assert expected_bytes(taken, 8) == 50


def test_no_size_is_tried_that_the_memory_of_the_smaller_ones_rules_out(tiny_model, digit_file, tmp_path, monkeypatch):
    tried = []

    def speed(worker, items):
        tried.append(len(items))
        return len(items) ** 2  # larger is always faster

    monkeypatch.setattr(PilotWorker, "_speed", speed)
    monkeypatch.setattr(PilotWorker, "_memory_taken", lambda worker: 10 + 5 * tried[-1])
    monkeypatch.setattr(PilotWorker, "_memory_limit", lambda worker: 60.0)
    found = audit(tiny_model, digit_file, tmp_path / "out", batch_size="auto")
    assert tried == [1, 2, 4, 8]
    assert found.summary["run"]["batch_size"] == 8


def test_the_best_of_some_rounds_counts():
    calls = []
    assert 0 <= seconds_of(lambda: calls.append(1), torch.device("cpu"), 4) < 60
    assert len(calls) == 4


def test_a_layout_is_one_of_three(tiny_model):
    settings = {"model": str(tiny_model), "data": "d", "output": "o"}
    for given in (True, False, "auto", None):
        assert vg.AuditConfig.build(**settings, channels_last=given).channels_last is given or given == "auto"
    with pytest.raises(UsageError, match="setting channels_last: expected True, False or auto, got 'maybe'"):
        vg.AuditConfig.build(**settings, channels_last="maybe")
