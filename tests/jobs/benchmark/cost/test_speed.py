"""The speed benchmark on a network of no size: what it compares is the same work, and what it writes can be read."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch

from jobs.benchmark.cost import speed
from jobs.benchmark.cost.networks import NETWORKS, TimedNetwork, random_denoiser, smooth_images, unet
from jobs.benchmark.cost.race import race
from jobs.benchmark.cost.roofline import Limits, forward_cost, measure_limits
from jobs.experiments import publish_outcome
from jobs.pages import DOCS
from tests.support.measured_pages import headings
from volgrowth.numerics import volume_growth

CPU = torch.device("cpu")
TINY = TimedNetwork("tiny", partial(unet, (32, 32), 1), (3, 8, 8), (16, 16), ((2, 1, 1), (2, 1, 1)))


def test_the_race_is_run_on_the_same_work() -> None:
    found = race(TINY, CPU, images=6, axes=2, steps=3, rounds=1)
    assert found["images x axes x steps"] == "6 x 2 x 3"
    assert found["agreement"] < 1e-2  # float32 differences of radius .05, relative to the spread of log volumes
    assert 0 < found["bfloat16 deviates, nats"] < 0.01
    assert min(found["loop, s"], found["batches, s"], found["bfloat16, s"]) > 0


@pytest.mark.parametrize("network", [each for each in NETWORKS if not each.gpu_only], ids=lambda each: each.name)
def test_a_network_has_as_many_parameters_as_its_name_says(network: TimedNetwork) -> None:
    millions = sum(parameter.numel() for parameter in network.build().parameters()) / 1e6
    found = re.search(r", ([\d.]+)M", network.name)
    assert found
    decimals = len(found[1].partition(".")[2])
    assert round(millions, decimals) == float(found[1])


def test_random_weights_give_something_to_differentiate() -> None:
    denoiser, images = random_denoiser(TINY, torch.float64, CPU), smooth_images(TINY, 2, CPU).double()
    growth = volume_growth(denoiser, images, times=torch.tensor([1e-3, 2e-3], dtype=torch.float64)).log_volume
    assert (growth - growth.mean()).abs().max() > 1e-6
    assert images.abs().max() <= 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_a_network_has_the_same_weights_in_every_precision(dtype: torch.dtype) -> None:
    """Otherwise times and deviations of two precisions would be those of two networks."""
    weights = [
        dict(random_denoiser(TINY, each, CPU).network.args[0].named_parameters())  # type: ignore[attr-defined]
        for each in (torch.float32, dtype)
    ]
    assert all(torch.equal(tensor.to(dtype), weights[1][name]) for name, tensor in weights[0].items())
    assert all(tensor.any() for tensor in weights[0].values())


class Two(torch.nn.Module):
    """One product and one sum: 6 images, 5 numbers in and 7 out."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(5, 7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mm(self.weight)[:, :5] + 1


def test_the_roofline_takes_the_longer_of_two_times_for_each_operation() -> None:
    product, moved = 2 * 6 * 5 * 7, 4 * (6 * 5 + 5 * 7 + 6 * 7)
    added = 4 * (min(6 * 5, 6 * 7) + 6 * 5)  # the sum reads a view, of which only its own entries count

    class Denoised:
        def noise(self, y: torch.Tensor, noise_level: torch.Tensor) -> torch.Tensor:
            return network(y)

    network = Two().requires_grad_(False)
    for limits in (Limits(1.0, 1e9), Limits(1e9, 1.0)):
        cost = forward_cost(Denoised(), torch.ones(6, 5), limits)  # type: ignore[arg-type]
        assert (6 * cost.flops, 6 * cost.bytes) == (product, moved + added)
        assert 6 * cost.seconds == pytest.approx(
            max(product / limits.flops, moved / limits.bandwidth) + added / limits.bandwidth
        )


def test_attention_is_counted_on_a_cpu_too() -> None:
    """DiT-S/2: a published 6.06 G multiply-adds for latents of 32 x 32 (arXiv 2212.09748, table 4)."""
    dit = next(network for network in NETWORKS if network.name.startswith("DiT"))
    cost = forward_cost(random_denoiser(dit, torch.float32, CPU), smooth_images(dit, 1, CPU), Limits(1.0, 1.0))
    assert cost.flops == pytest.approx(2 * 6.06e9, rel=0.01)


def test_a_forward_pass_is_counted() -> None:
    """A convolution of 3x3 from 3 to 32 channels on 8x8 pixels takes 2 x 9 x 3 x 32 x 64 operations, and is not all."""
    limits = measure_limits(torch.float32, CPU)
    cost = forward_cost(random_denoiser(TINY, torch.float32, CPU), smooth_images(TINY, 1, CPU), limits)
    assert 2 * 9 * 3 * 32 * 64 < cost.flops < 1e9
    assert cost.seconds >= cost.flops / limits.flops


def test_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "FED_SECONDS", 0.05)
    monkeypatch.setattr(speed, "decode_rates", lambda: {"PNG 32": 10_000.0})
    outcome = speed.measure_speed((TINY,), rounds=1)
    speeds = outcome.tables["presets"]
    assert {(each["preset"], each["precision"]) for each in speeds} == {
        *((preset, dtype) for preset in ("standard", "paper, jvp") for dtype in ("float32", "bfloat16")),
        ("paper", "float32"),
    }
    for each in speeds:
        assert each["evaluations/s"] == pytest.approx(each["images/s"] * each["evaluations"])
        assert (each["idle, %"] is not None) == (each["preset"] == "paper, jvp" and each["batch"] == 16)
        assert each["idle, %"] is None or 0 <= each["idle, %"] < 100
    assert {each["batch"] for each in speeds} == {2, 16}
    assert len(outcome.tables["many"]) == 4
    publish_outcome("performance", "speed", outcome, tmp_path, 1.0)
    written, committed = ((folder / "performance.md").read_text() for folder in (tmp_path, DOCS))
    assert "10,000 images/s of PNG 32" in written
    assert "| tiny | 2 x 1 x 1 |" in written
    for place in ("speed-floors", "speed-races", "speed-presets", "speed-many"):
        assert headings(written, place) == headings(committed, place)


def test_decoding_is_timed() -> None:
    assert min(speed.decode_rates(count=20).values()) > 0
