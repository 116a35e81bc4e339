"""Devices without float64: no tensor of it is made there, and numbers are those of devices that have it.

Such a device, Apple's GPU, is not here: the meta device, which computes nothing, and the CPU stand for it.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

import volgrowth as vg
from volgrowth.audit.sampling.drawing import to_pixels
from volgrowth.audit.sampling.neighbours import Neighbours
from volgrowth.audit.scoring.derivatives import derivative_deviation
from volgrowth.audit.scoring.measures import Flow, launch_images, measure_images
from volgrowth.config import Measure, PaperMeasure, ScreenMeasure, StandardMeasure, VolumeMeasure
from volgrowth.models import load_model
from volgrowth.numerics import growth, precision, traces
from volgrowth.numerics.orthogonality import noise_moments
from volgrowth.numerics.solvers import nodes

MEASURES = [
    StandardMeasure(),
    ScreenMeasure(),
    PaperMeasure(num_tangents=2),
    VolumeMeasure(num_levels=3),
]


class Linear(vg.Denoiser):
    """Expects noise in proportion to the state."""

    image_shape = (1, 4, 4)

    def noise(self, y: Tensor, noise_level: Tensor) -> Tensor:
        return y * 0.5 / (1 + noise_level.item())


class NoFloat64(TorchDispatchMode):
    """Refuses float64 on the meta device; what is copied from there to the CPU is ones."""

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        to = kwargs.get("device")
        if op is torch.ops.aten._to_copy.default and args[0].is_meta and to is not None and to.type == "cpu":
            return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        answer = op(*args, **kwargs)
        for each in tree_leaves(answer):
            if isinstance(each, Tensor) and each.is_meta and each.dtype is torch.float64:
                raise AssertionError(f"{op} made float64 on a device without it")
        return answer


def unwatched(*given: Any) -> Any:
    """Nodes of a solver, which are numbers of the host: torch's forward mode finds out types on the meta device."""
    with _disable_current_modes():
        return nodes(*given)


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Declare a kind of device to be without float64."""
    for module in (growth, traces):
        monkeypatch.setattr(module, "nodes", unwatched)
    return lambda kind: monkeypatch.setattr(precision, "WITHOUT_FLOAT64", (kind,))


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.preset)
def test_no_float64_is_made_on_a_device_without_it(measure: Measure, without: Any) -> None:
    without("meta")
    images = torch.zeros(3, 1, 4, 4, device="meta")
    with NoFloat64():
        sent = launch_images(Flow(Linear(), Linear(), 2.0), images, [0, 1, 2], measure, 0).sent()
    assert sent.packed.dtype is torch.float64
    assert not sent.packed.is_meta


def test_the_mode_of_these_tests_sees_float64() -> None:
    with NoFloat64(), pytest.raises(AssertionError, match="made float64"):
        launch_images(Flow(Linear()), torch.zeros(3, 1, 4, 4, device="meta"), [0, 1, 2], StandardMeasure(), 0).sent()


def test_checks_samples_and_distances_make_none_there_either(without: Any) -> None:
    without("meta")
    states = torch.zeros(3, 1, 4, 4, device="meta")
    with NoFloat64():
        noise_moments(states, states, states)
        to_pixels(states)
        derivative_deviation(Linear(), Linear(), states, VolumeMeasure(), 0)
        near = Neighbours(np.zeros((2, 1, 4, 4), np.uint8), 1, "meta")
        near.add(np.ones((2, 1, 4, 4), np.uint8), np.array([0, 1]))
    assert near.squared.ravel().tolist() == [16, 16]


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.preset)
def test_scores_are_the_same_to_the_bit(measure: Measure, without: Any) -> None:
    images = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    before = measure_images(Flow(Linear()), images, [0, 1, 2], measure, 0)
    without("cpu")
    after = measure_images(Flow(Linear()), images, [0, 1, 2], measure, 0)
    for name, column in before.columns.items():
        np.testing.assert_array_equal(after.columns[name], column)


def test_a_model_in_float64_is_refused_there(tiny_model: Any, without: Any) -> None:
    without("cpu")
    with pytest.raises(vg.ModelError, match="float64, which cpu does not have: expected float32"):
        load_model(str(tiny_model), dtype="float64")
    assert load_model(str(tiny_model)).dtype is torch.float32
