"""The speed benchmark on a network of no size: what it compares is the same work, and what it writes can be read."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from volgrowth.lab import speed_run
from volgrowth.lab.speed import Subject, _plain, _unet, denoiser_of, flops, images_of, matmul_peak, race, speeds
from volgrowth.lab.speed_page import Results, markdown
from volgrowth.numerics import volume_growth

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
TINY = Subject("tiny", partial(_unet, (32, 32), "dd", "uu", 1), (3, 8, 8), (4, 4), _plain)


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


def test_a_forward_pass_is_counted() -> None:
    """A convolution of 3x3 from 3 to 32 channels on 8x8 pixels takes 2 x 9 x 3 x 32 x 64 operations, and is not all."""
    cost = flops(denoiser_of(TINY, torch.float32, CPU), images_of(TINY, 1, CPU))
    assert 2 * 9 * 3 * 32 * 64 < cost < 1e9
    assert matmul_peak(torch.float32, CPU) > 1e8


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
    page = (tmp_path / "speed.md").read_text()
    assert "100,000,000 images" in page
    assert "| tiny | 2 x 1 x 1 |" in page


def test_a_page_without_a_gpu_has_no_memory() -> None:
    some = list(speeds([TINY], CPU, rounds=1))[:1]
    page = markdown(Results("here", {"float32": 1e12}, {"PNG 32": 1e4}, {"tiny": 1e6}, some, []))
    assert "memory" not in page
    assert "1.00 TFLOP/s" in page
