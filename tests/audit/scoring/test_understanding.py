"""A right model is understood, and each way to wire it wrongly is named.

The networks are exact: behind each output, schedule and label lies the best affine denoiser of digits, whose error is
orthogonal to every affine function of its input. So whatever the check says of them comes from their wiring alone.
"""

from collections.abc import Callable
from dataclasses import astuple, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.checkpoints import unet
from volgrowth.audit.scoring.understanding import ModelCheck, NoisyStates, examine
from volgrowth.audit.workers.fitting import BatchSize
from volgrowth.models import NetworkDenoiser
from volgrowth.models.parameterizations import EDM, Parameterization, Scales, Scheduled
from volgrowth.numerics import (
    DDPMSchedule,
    Denoiser,
    FlowMatchingSchedule,
    GaussianDenoiser,
    LinearDenoiser,
    Schedule,
    VPSchedule,
)

SHAPE = (1, 8, 8)
ENDS = (0.01, 80.0)


def table(*betas: float, root: bool = False) -> DDPMSchedule:
    low, high = (beta**0.5 if root else beta for beta in betas)
    steps = torch.linspace(low, high, 1000, dtype=torch.float64) ** (2 if root else 1)
    return DDPMSchedule((1 - steps).cumprod(0))


LINEAR, SCALED, FLOW = table(1e-4, 0.02), table(0.00085, 0.012, root=True), FlowMatchingSchedule()
WIRINGS: dict[str, Parameterization] = {
    "epsilon": Scheduled.on_table(LINEAR, "epsilon"),
    "epsilon of the SDE": Scheduled(VPSchedule(), "epsilon", ENDS),
    "v": Scheduled.on_table(SCALED, "v_prediction"),
    "x_0": Scheduled.on_table(LINEAR, "sample"),
    "flow": Scheduled(FLOW, "flow_prediction", ENDS),
    "score": Scheduled.on_table(LINEAR, "score"),
    "EDM": EDM(0.5, ENDS),
}


@pytest.fixture(scope="module")
def states(digits: np.ndarray) -> Tensor:
    return torch.from_numpy(digits / 127.5 - 1)


@pytest.fixture(scope="module")
def affine(states: Tensor) -> LinearDenoiser:
    return LinearDenoiser(states)


class Network:
    """What a perfectly trained network of a wiring answers, in its own coordinates and under its own labels."""

    def __init__(self, affine: Denoiser, wiring: Parameterization, unit: bool = False):
        self.affine, self.wiring, self.unit = affine, wiring, unit
        levels = torch.logspace(-3, 3, 20_001, dtype=torch.float64)
        # tables clamp their labels: those of levels beyond the ends are left out
        labels = wiring(levels).label
        kept = torch.cat([torch.ones(1, dtype=torch.bool), labels.diff() > 0])
        self.labels, self.levels = labels[kept].numpy(), levels[kept].log().numpy()

    def __call__(self, x: Tensor, labels: Tensor) -> Tensor:
        level = torch.tensor(np.exp(np.interp(labels.numpy(), self.labels, self.levels)))[0]
        scales = self.wiring(level)
        y = x / scales.input
        noise = self.affine.noise(2 * y - 1, 2 * level) if self.unit else self.affine.noise(y, level)
        return (noise - scales.of_y * y) / scales.of_output


class Relabelled(Parameterization):
    """A wiring with the label of another level."""

    def __init__(self, wiring: Parameterization, other: Callable[[Tensor], Tensor]):
        self.wiring, self.other = wiring, other
        self.schedule, self.noise_levels = wiring.schedule, wiring.noise_levels

    def __call__(self, noise_level: Tensor) -> Scales:
        low, high = self.noise_levels
        return replace(self.wiring(noise_level), label=self.wiring(self.other(noise_level).clamp(low, high)).label)


class ByHand(Denoiser):
    """A denoiser of which nothing is known but its answer."""

    image_shape = SHAPE
    dtype = torch.float64

    def __init__(self, answer: Callable[[Tensor, Tensor], Tensor]):
        self.noise = answer  # type: ignore[method-assign, assignment]


def wired(network: Any, wiring: Parameterization, **options: Any) -> Denoiser:
    denoiser = NetworkDenoiser(network, wiring, SHAPE, **options)
    denoiser.dtype = torch.float64
    return denoiser


def check(denoiser: Denoiser, states: Tensor, images: int = 64, seed: int = 0) -> ModelCheck:
    return examine(NoisyStates(denoiser, states[:images], None, seed, BatchSize(48)))


def reversed_time(schedule: Schedule, last: float) -> Callable[[Tensor], Tensor]:
    return lambda level: schedule.noise_level(last - schedule.time(level))


# what is right


@pytest.mark.parametrize("name", WIRINGS)
@pytest.mark.parametrize("unit", [False, True])
def test_a_right_model_is_understood(name: str, unit: bool, affine: Denoiser, states: Tensor) -> None:
    found = check(wired(Network(affine, WIRINGS[name], unit), WIRINGS[name], unit_range=unit), states)
    assert found.verdict == "right", found
    assert [fit.noise_level for fit in found.levels] == [0.1, 0.3, 1.0, 3.0]
    assert all(fit.total == pytest.approx(1, abs=0.05) for fit in found.levels[1:])
    assert ModelCheck.from_json(found.to_json()) == found


@pytest.mark.parametrize("images", [4, 6, 8, 16])
def test_few_images_give_no_false_alarm(images: int, affine: Denoiser, states: Tensor) -> None:
    assert all(check(affine, states[images * seed :], images, seed).verdict == "right" for seed in range(6))


def test_too_few_images_are_said(affine: Denoiser, states: Tensor) -> None:
    found = check(affine, states, 3)
    assert (found.verdict, found.images) == ("untested", 3)
    assert found.cause == "3 images with finite answers, and 4 are needed"


def test_images_without_an_answer_are_left_out(affine: Denoiser, states: Tensor) -> None:
    broken = torch.arange(64).reshape(-1, 1, 1, 1) < 61
    whole = NoisyStates(
        ByHand(lambda y, level: affine.noise(y, level) / broken[: len(y)]), states[:64], None, 0, BatchSize(64)
    )
    assert examine(whole).images == 61


@pytest.mark.parametrize("shrunk", [0.9, 0.95, 1.05])
def test_a_model_that_is_little_off_is_not_wrong(shrunk: float, affine: Denoiser, states: Tensor) -> None:
    """As networks are that have learned little, or were averaged too early."""
    assert check(ByHand(lambda y, level: shrunk * affine.noise(y, level)), states).verdict == "right"


def test_pixels_that_are_independent_leave_nothing_to_learn(states: Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = 0.5 * torch.randn(64, *SHAPE, generator=generator, dtype=torch.float64)
    denoiser = GaussianDenoiser(0.0, 0.25)
    denoiser.image_shape, denoiser.dtype = SHAPE, torch.float64
    assert check(denoiser, noise).verdict == "right"
    # on digits it is no better than a network with its initial weights, since that is what it is for variance 1
    assert check(denoiser, states).verdict == "wrong"


# what is not

NAMES = {
    "epsilon": "the noise (epsilon)",
    "v": "v = alpha e - sigma x_0",
    "x_0": "the clean image (x_0)",
    "flow": "the velocity of a flow (e - x_0)",
}
TYPES: dict[str, Any] = {"epsilon": "epsilon", "v": "v_prediction", "x_0": "sample", "flow": "flow_prediction"}
OUTPUTS = [(is_, read) for is_ in ("epsilon", "v", "x_0") for read in (*TYPES,) if is_ != read]
OUTPUTS += [("flow", read) for read in ("epsilon", "x_0")]


@pytest.mark.parametrize(("output", "read"), OUTPUTS)
def test_another_output(output: str, read: str, affine: Denoiser, states: Tensor) -> None:
    schedule: Schedule = FLOW if output == "flow" else LINEAR
    right, wrong = (Scheduled(schedule, TYPES[name], (0.01, 80.0)) for name in (output, read))
    found = check(wired(Network(affine, right), wrong), states)
    assert (found.verdict, found.cause) == ("wrong", f"its output is {NAMES[output]}, and is read as {NAMES[read]}")
    assert found.fix == f"set its prediction type to {TYPES[output]}"


@pytest.mark.parametrize("name", WIRINGS)
def test_the_wrong_sign(name: str, affine: Denoiser, states: Tensor) -> None:
    network = Network(affine, WIRINGS[name])
    found = check(wired(lambda x, labels: -network(x, labels), WIRINGS[name]), states)
    assert found.verdict == "wrong"
    assert "opposite" in found.cause
    assert "sign" in found.fix
    opposite = check(ByHand(lambda y, level: -affine.noise(y, level)), states)
    assert opposite.cause == "its answer has the opposite sign"
    assert [round(fit.of_answer, 1) for fit in opposite.levels[:3]] == [-1.0, -1.0, -1.0]


@pytest.mark.parametrize("name", ["epsilon", "epsilon of the SDE", "v", "flow"])
def test_time_that_runs_backwards(name: str, affine: Denoiser, states: Tensor) -> None:
    wiring = WIRINGS[name]
    last = 999 if isinstance(wiring.schedule, DDPMSchedule) else 1
    turned = Relabelled(wiring, reversed_time(wiring.schedule, last))
    found = check(wired(Network(affine, wiring), turned), states)
    assert (found.verdict, found.cause) == ("wrong", "time runs backwards")


@pytest.mark.parametrize("factor", [0.5, 2.0])
@pytest.mark.parametrize("name", WIRINGS)
def test_a_factor_of_two_in_the_noise_level(name: str, factor: float, affine: Denoiser, states: Tensor) -> None:
    off = Relabelled(WIRINGS[name], lambda level: factor * level)
    found = check(wired(Network(affine, WIRINGS[name]), off), states)
    cause = f"its label stands for {factor:g} times the noise level that there is"
    assert (found.verdict, found.cause) == ("wrong", cause)


@pytest.mark.parametrize(
    ("trained", "name", "output"),
    [(LINEAR, "linear", "epsilon"), (SCALED, "scaled_linear", "epsilon"), (LINEAR, "linear", "v_prediction")],
)
def test_another_table_of_betas(
    trained: DDPMSchedule, name: str, output: Any, affine: Denoiser, states: Tensor
) -> None:
    other = SCALED if trained is LINEAR else LINEAR
    network = Network(affine, Scheduled.on_table(trained, output))
    found = check(wired(network, Scheduled.on_table(other, output)), states)
    assert (found.verdict, found.cause) == ("wrong", f"its steps are those of the {name} table of betas")


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("name", ["epsilon", "v", "flow"])
def test_images_in_another_range(name: str, unit: bool, affine: Denoiser, states: Tensor) -> None:
    found = check(wired(Network(affine, WIRINGS[name], unit), WIRINGS[name], unit_range=not unit), states)
    trained, shown = ("[0, 1]", "[-1, 1]") if unit else ("[-1, 1]", "[0, 1]")
    assert found.cause == f"it was trained on images in {trained}, and is shown images in {shown}"
    bytes_ = ByHand(lambda y, level: affine.noise(y / 127.5 - 1, level / 127.5))
    assert check(bytes_, states).cause == "it was trained on images in [0, 255], and is shown images in [-1, 1]"


@pytest.mark.parametrize("name", WIRINGS)
def test_the_same_label_for_every_level(name: str, affine: Denoiser, states: Tensor) -> None:
    constant = Relabelled(WIRINGS[name], lambda level: 0 * level + 0.5)
    found = check(wired(Network(affine, WIRINGS[name]), constant), states)
    assert (found.verdict, found.cause) == ("wrong", "its answer does not depend on the noise level")


@pytest.mark.parametrize("name", WIRINGS)
def test_initial_weights(name: str, states: Tensor) -> None:
    network = unet().double().eval().requires_grad_(False)
    found = check(wired(lambda x, labels: network(x, labels).sample, WIRINGS[name]), states)
    assert (found.verdict, found.fix) == ("wrong", "load the trained weights")
    silent = check(wired(lambda x, labels: 0 * x, WIRINGS[name]), states)
    assert silent.verdict == "wrong"


def test_images_that_the_model_was_not_trained_on(digits: np.ndarray, states: Tensor) -> None:
    """One that knows 27 images by heart."""
    from volgrowth.numerics import EmpiricalDenoiser

    known = EmpiricalDenoiser(states[:27])
    assert check(known, states, 27).verdict == "right"
    found = check(known, states[27:])
    assert (found.verdict, found.cause) == ("wrong", "none of the mistakes that were tried explains it")
    assert "audit images that the model was trained on" in found.fix


def test_noises_come_from_no_shared_generator(affine: Denoiser, states: Tensor) -> None:
    state = torch.get_rng_state()
    first = check(affine, states)
    assert torch.get_rng_state().equal(state)
    assert check(affine, states) == first
    for fit, other in zip(
        first.levels, examine(NoisyStates(affine, states[:64], None, 0, BatchSize(7))).levels, strict=True
    ):
        assert astuple(fit) == pytest.approx(astuple(other), abs=1e-4)
