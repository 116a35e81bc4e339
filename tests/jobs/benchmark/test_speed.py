"""The speed benchmark on a network of no size: what it compares is the same work, and what it writes can be read."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from jobs.benchmark.cost import speed_run
from jobs.benchmark.cost.race import race
from jobs.benchmark.cost.roofline import Limits, cost_of, limits_of
from jobs.benchmark.cost.speed import speeds
from jobs.benchmark.cost.speed_page import Results, markdown
from jobs.benchmark.cost.subjects import SUBJECTS, Subject, denoiser_of, images_of, plain, unet
from volgrowth.numerics import volume_growth

CPU = torch.device("cpu")
TINY = Subject("tiny", partial(unet, (32, 32), "dd", "uu", 1), (3, 8, 8), (16, 16), plain)


def test_the_race_is_run_on_the_same_work() -> None:
    found = race(TINY, CPU, images=6, axes=2, steps=3, rounds=1)
    assert (found.images, found.axes, found.steps) == (6, 2, 3)
    assert found.difference < 1e-2  # float32 differences of radius .05, relative to the spread of log volumes
    assert 0 < found.low_difference < 0.01
    assert min(found.naive, found.batched, found.low) > 0


def test_random_weights_give_something_to_differentiate() -> None:
    denoiser, images = denoiser_of(TINY, torch.float64, CPU), images_of(TINY, 2, CPU).double()
    growth = volume_growth(denoiser, images, times=torch.tensor([1e-3, 2e-3], dtype=torch.float64)).log_volume
    assert (growth - growth.mean()).abs().max() > 1e-6
    assert images.abs().max() <= 1


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
        cost = cost_of(Denoised(), torch.ones(6, 5), limits)  # type: ignore[arg-type]
        assert (6 * cost.flops, 6 * cost.bytes) == (product, moved + added)
        assert 6 * cost.seconds == pytest.approx(
            max(product / limits.flops, moved / limits.bandwidth) + added / limits.bandwidth
        )


def test_attention_is_counted_on_a_cpu_too() -> None:
    """DiT-S/2: a published 6.06 G multiply-adds for latents of 32 x 32 (arXiv 2212.09748, table 4)."""
    dit = next(subject for subject in SUBJECTS if subject.name.startswith("DiT"))
    cost = cost_of(denoiser_of(dit, torch.float32, CPU), images_of(dit, 1, CPU), Limits(1.0, 1.0))
    assert cost.flops == pytest.approx(2 * 6.06e9, rel=0.01)


def test_a_forward_pass_is_counted() -> None:
    """A convolution of 3x3 from 3 to 32 channels on 8x8 pixels takes 2 x 9 x 3 x 32 x 64 operations, and is not all."""
    limits = limits_of(torch.float32, CPU)
    cost = cost_of(denoiser_of(TINY, torch.float32, CPU), images_of(TINY, 1, CPU), limits)
    assert 2 * 9 * 3 * 32 * 64 < cost.flops < 1e9
    assert cost.seconds >= cost.flops / limits.flops


def test_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed_run, "SUBJECTS", (TINY,))
    monkeypatch.setattr(speed_run, "SMALL_RACE", ((2, 1, 1), (2, 1, 1)))
    monkeypatch.setattr(speed_run, "decode_rates", lambda: {"PNG 32": 10_000.0})
    speed_run.run_speed(tmp_path, quick=True)
    numbers = json.loads((tmp_path / "speed.json").read_text())
    assert {(each["preset"], each["dtype"]) for each in numbers["speeds"]} == {
        *((preset, dtype) for preset in ("standard", "paper, jvp") for dtype in ("float32", "bfloat16")),
        ("paper", "float32"),
    }
    for each in numbers["speeds"]:
        assert each["evaluations_per_second"] == pytest.approx(each["images_per_second"] * each["nfe"])
        assert (each["idle"] is not None) == (each["preset"] == "paper, jvp" and each["batch"] == 16)
        assert each["idle"] is None or 0 <= each["idle"] < 1
    assert {each["batch"] for each in numbers["speeds"]} == {2, 16}
    page = (tmp_path / "speed.md").read_text()
    assert "100,000,000 images" in page
    assert "| tiny | 2 x 1 x 1 |" in page


def test_a_page_without_a_gpu_has_no_memory() -> None:
    floor, some = next(iter(speeds([TINY], CPU, rounds=1)))
    page = markdown(Results("here", {"PNG 32": 1e4}, [floor], some[:1], []))
    assert "memory" not in page
    assert "| tiny | float32 |" in page
    assert "10,000 images/s of PNG 32" in page
