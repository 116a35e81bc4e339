"""What must stay true on any GPU: growth is right, the host does not wait, and a full device is met.

Run with `pytest -m gpu` on a machine that has one. How fast it is, `python jobs/benchmark.py gpu` measures.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from scipy.stats import spearmanr

from jobs.benchmark.device.correctness import check_full_device
from jobs.benchmark.device.launches import host_waits
from jobs.benchmark.device.rig import CIFAR, PRESETS, SMALL, Rig, launch, low_allowed
from tests.support.pipelines import build, unet2d
from volgrowth.audit.scoring.arithmetic import describe_arithmetic
from volgrowth.audit.scoring.captured import Launcher
from volgrowth.audit.scoring.pilot import seconds_of
from volgrowth.audit.scoring.scorer import Scorer
from volgrowth.commands.audit import run_audit
from volgrowth.config import AuditConfig
from volgrowth.models import NetworkDenoiser, load_model
from volgrowth.sources import Row, encode_png

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use"),
]
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(GPU, tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("preset", PRESETS)
def test_growth_is_that_of_float64_on_a_cpu(rig: Rig, preset: str, dtype: torch.dtype) -> None:
    measure = PRESETS[preset]
    if dtype is torch.bfloat16 and not low_allowed(measure):
        pytest.skip("differences are refused in bfloat16")
    if dtype is torch.bfloat16 and preset == "volume":
        pytest.skip("random weights make rounding grow along a trace as those of training do not")
    images = rig.images(SMALL, 8, CPU)
    exact = launch(rig.denoiser(SMALL, torch.float64, CPU), images.double(), measure).fetch().columns["growth"]
    found = launch(rig.denoiser(SMALL, dtype), images.to(GPU), measure).fetch().columns["growth"]
    deviation = np.std(found - exact) / np.std(exact)
    assert deviation < (0.02 if dtype is torch.float32 else 0.1)
    assert spearmanr(found, exact).statistic > (0.99 if dtype is torch.float32 else 0.9)


@pytest.mark.parametrize("preset", [name for name, measure in PRESETS.items() if low_allowed(measure)])
def test_a_launch_does_not_wait_for_the_device(rig: Rig, preset: str) -> None:
    denoiser, images, measure = rig.denoiser(SMALL, torch.bfloat16), rig.images(SMALL, 16), PRESETS[preset]
    launch(denoiser, images, measure).fetch()  # what is only done once may wait
    assert host_waits(rig, lambda: launch(denoiser, images, measure)) is None


def test_results_do_not_wait_for_the_work_behind_them(rig: Rig) -> None:
    denoiser, images, measure = rig.denoiser(SMALL, torch.bfloat16), rig.images(SMALL, 16), PRESETS["paper, jvp"]
    launch(denoiser, images, measure).fetch()
    launched = launch(denoiser, images, measure)
    torch.cuda._sleep(4_000_000_000)  # two seconds or so
    behind = torch.cuda.Event()
    behind.record()
    launched.fetch()
    assert not behind.query()


@pytest.mark.parametrize("preset", ["screen", "standard", "paper"])
def test_a_recorded_launch_has_the_numbers_of_the_plain_one(rig: Rig, preset: str) -> None:
    config = AuditConfig.build(model="m", data="d", output="o", measure={"preset": preset}, batch_size=16)
    images = (rig.images(SMALL, 64, CPU) + 1) * 127.5
    rows = [Row(k, f"{k}", "", encode_png(each)) for k, each in enumerate(images.round().to(torch.uint8).numpy())]
    recorded, plain = (Scorer(rig.denoiser(SMALL, torch.float32), config) for _ in range(2))
    plain.launcher = Launcher(None)
    found, expected = (scorer.score(rows)["growth"].to_numpy() for scorer in (recorded, plain))
    assert recorded.launcher.said.startswith("as a CUDA graph")
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    items = recorded.prepare(rows[:16])
    assert host_waits(rig, lambda: recorded._try(items, 16)) is None


def test_captions_and_an_autoencoder_are_recorded_too(tmp_path: Path) -> None:
    """All that a launch reads must be on the device: a recording can copy nothing from the host."""
    build("sd1", tmp_path)
    settings = {"measure": {"preset": "standard"}, "batch_size": 8, "caption_column": "caption", "guidance": 3.0}
    config = AuditConfig.build(model="m", data="d", output="o", **settings)
    images = np.random.default_rng(0).integers(0, 256, (16, 3, 16, 16)).astype(np.uint8)
    rows = [Row(k, f"{k}", "", encode_png(each), condition="ab c"[: k % 5]) for k, each in enumerate(images)]
    recorded, plain = (Scorer(load_model(str(tmp_path), device="cuda"), config) for _ in range(2))
    plain.launcher = Launcher(None)
    found, expected = (scorer.score(rows)["growth"].to_numpy() for scorer in (recorded, plain))
    assert recorded.launcher.said.startswith("as a CUDA graph")
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_a_full_device_is_met_with_smaller_micro_batches(rig: Rig) -> None:
    scores, autoencoder = check_full_device(rig)
    assert scores["failed"] == 0
    assert max(scores["used"]) < scores["asked"]
    assert scores["worst"] < 0.1 * scores["spread"]
    assert autoencoder["finite"]


def test_the_arithmetic_of_a_network_of_convolutions(tmp_path: Path) -> None:
    build("sd1", tmp_path)
    config = AuditConfig.build(model=str(tmp_path), data="unused", output="unused", dtype="bfloat16")
    scorer = Scorer(load_model(str(tmp_path), dtype="bfloat16", device="cuda"), config)
    image = encode_png(np.zeros((3, 16, 16), np.uint8))
    found = describe_arithmetic(scorer, scorer.prepare([Row(0, "0", "", image)]))
    assert (found["dtype"], found["channels_last"]) == (["bfloat16"], True)
    assert found["attention"]


@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3"])
def test_an_embedding_does_not_depend_on_the_captions_beside_it(tmp_path: Path, family: str) -> None:
    build(family, tmp_path)
    captions = [f"{'a' * (1 + k % 9)} {'b' * (k // 9)}" for k in range(40)]
    found: list[dict[str, Any]] = []
    for order in (captions, captions[::-1]):
        denoiser = load_model(str(tmp_path), dtype="bfloat16", device="cuda")
        assert isinstance(denoiser, NetworkDenoiser)
        assert denoiser.conditioner is not None
        found.append(denoiser.conditioner(order))
    for name, tensor in found[0].items():
        assert tensor.equal(found[1][name].flip(0))


def test_weights_are_the_same_on_every_device(rig: Rig) -> None:
    here, there = (rig.denoiser(CIFAR, torch.bfloat16, at).network.args[0] for at in (CPU, GPU))  # type: ignore[attr-defined]
    assert all(a.equal(b.cpu()) for a, b in zip(here.parameters(), there.parameters(), strict=True))


def test_an_audit_finds_out_what_is_fastest_and_says_what_it_did(tmp_path: Path) -> None:
    """The way of a user: no batch size, no layout and no size of shards are given."""
    DDPMPipeline(unet2d(), DDPMScheduler()).save_pretrained(tmp_path / "model")
    images = np.random.default_rng(0).integers(0, 256, (300, 3, 8, 8)).astype(np.uint8)
    table = pa.table({"image": [{"bytes": encode_png(image), "path": None} for image in images]})
    pq.write_table(table, tmp_path / "data.parquet")
    settings = {"model": str(tmp_path / "model"), "data": str(tmp_path / "data.parquet"), "engine": "local"}
    config = AuditConfig.build(**settings, output=str(tmp_path / "out"), trust_model=True)
    summary = run_audit(config, quiet=True).summary
    assert summary["counts"]["ok"] == 300
    run, name = summary["run"], torch.cuda.get_device_name()
    assert (run["device_names"], run["tuned_on"]) == ([name], name)
    arithmetic = run["arithmetic"]
    assert arithmetic["launch"].startswith("as a CUDA graph")
    assert arithmetic["batch_size"] >= 1
    assert "times as fast as first" in arithmetic["layout"]
    assert arithmetic["channels_last"] is not None
    assert arithmetic["attention"]
    assert arithmetic["tf32"] in ([], ["convolutions"])


def test_seconds_are_those_of_the_device() -> None:
    """A launch returns at once; what it queued is what counts."""
    assert seconds_of(lambda: torch.cuda._sleep(200_000_000), GPU) > 0.02
