"""Other readings of a model: what its answers would be if it had been wired in another way.

Every reading asks the model at another point, scale y + shift, and another noise level, and takes a combination of the
answer, of y and of a constant for the expected noise. So a reading is six numbers at each level, and its loss follows
from the moments of `volgrowth.numerics.orthogonality`. If one of them predicts the noise much better than the model
as it is, that reading names the mistake.

The network's own output is found through its parameterization: noise(y, level) = of_y y + of_output F(input y, label).
A `NetworkDenoiser` says which one it has; for other denoisers the usual ones are tried.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from volgrowth.models.network import NetworkDenoiser
from volgrowth.models.parameterizations import EDM, Parameterization, PredictionType, Scales, Scheduled
from volgrowth.numerics import DDPMSchedule, Denoiser, FlowMatchingSchedule, Schedule, VESchedule, VPSchedule

ScalesAt = Callable[[Tensor], Scales]

# how often the true noise level the label may stand for
FACTORS = (0.25, 0.5, 2.0, 4.0)
OUTPUTS: dict[PredictionType, str] = {
    "epsilon": "the noise (epsilon)",
    "v_prediction": "v = alpha e - sigma x_0",
    "sample": "the clean image (x_0)",
    "flow_prediction": "the velocity of a flow (e - x_0)",
}


@dataclass(frozen=True)
class Asked:
    """How a reading asks the model at one level, and what it makes of the answer.

    The expected noise at (y, level) is `of_answer` h + `of_input` y + `of_one`, with h the model's answer at
    (`scale` y + `shift`, `level`).
    """

    level: float
    scale: float = 1.0
    shift: float = 0.0
    of_answer: float = 1.0
    of_input: float = 0.0
    of_one: float = 0.0


@dataclass(frozen=True)
class Reading:
    """Another way to read a model.

    Attributes:
        cause: what is wrong if this reading is right.
        fix: what to do then.
        asked: function from a noise level to how the model is asked there.
    """

    cause: str
    fix: str
    asked: Callable[[float], Asked]


def readings(denoiser: Denoiser, size: float) -> list[Reading]:
    """Return the other readings that are worth trying of a denoiser.

    Args:
        denoiser: the model.
        size: root mean square of its states, for latents of another scale.
    """
    unit, found = bool(getattr(denoiser, "unit_range", False)), [*_ranges(denoiser, size)]
    found.append(Reading(*_SIGN, lambda level: Asked(level, of_answer=-1.0)))
    for wired in parameterizations(denoiser):
        found += [*_outputs(wired, unit), *_labels(wired, unit)]
    return found


_SIGN = ("its answer has the opposite sign", "turn the sign of its output: y = x_0 + noise_level * noise")


def parameterizations(denoiser: Denoiser) -> list[Parameterization]:
    """Return the parameterization of a denoiser, or those that it may have."""
    known = getattr(denoiser, "parameterization", None)
    if isinstance(known, Parameterization):
        return [known]
    schedule, ends = denoiser.schedule, (1e-9, 1e9)
    if schedule is not None:
        found: list[Parameterization] = [Scheduled(schedule, output, ends) for output in _possible(schedule)]
        return [*found, EDM(0.5, ends)] if isinstance(schedule, VESchedule) else found
    return [
        Scheduled(VPSchedule(), "epsilon", ends),
        Scheduled(VPSchedule(), "v_prediction", ends),
        Scheduled(FlowMatchingSchedule(), "flow_prediction", ends),
        Scheduled(VESchedule(), "sample", ends),
        EDM(0.5, ends),
    ]


def _possible(schedule: Schedule) -> list[PredictionType]:
    """Return the outputs that networks on a schedule are trained to give."""
    if isinstance(schedule, FlowMatchingSchedule):
        return ["flow_prediction", "epsilon", "sample"]
    return ["epsilon", "sample"] if isinstance(schedule, VESchedule) else ["epsilon", "v_prediction", "sample"]


def asked_again(wired: ScalesAt, right: ScalesAt, level: float, other: float, unit: bool) -> Asked:
    """Show the network what it is shown at a level, with the label of another level, and read its output anew.

    Args:
        wired: the parameterization that the denoiser uses.
        right: the one by which the output is read.
        level: the noise level of y.
        other: the level whose label the network gets.
        unit: True if the network sees (y + 1) / 2 at half the level.
    """
    slope, offset = (0.5, 0.5) if unit else (1.0, 0.0)
    here, there = (at(torch.tensor(slope * of, dtype=torch.float64)) for at, of in ((right, level), (wired, other)))
    scale = (here.input / there.input).item()
    answer = (here.of_output / there.of_output).item()
    y = here.of_y.item() - answer * there.of_y.item() * scale
    return Asked(other, scale, (scale - 1) * offset / slope, answer, y * slope, y * offset)


def _outputs(wired: Parameterization, unit: bool) -> Iterator[Reading]:
    """Yield readings of the output as something else, or with the opposite sign."""

    def reading(cause: str, fix: str, right: ScalesAt) -> Reading:
        return Reading(cause, fix, lambda level: asked_again(wired, right, level, level, unit))

    if not isinstance(wired, Scheduled):
        yield reading("its output has the opposite sign", "turn the sign of the output", _turned(wired))
        return
    read = OUTPUTS.get(wired.prediction_type, wired.prediction_type)
    for output, turned in product(_possible(wired.schedule), (False, True)):
        if output == wired.prediction_type and not turned:
            continue
        scheduled = Scheduled(wired.schedule, output, wired.noise_levels, wired.label)
        right, opposite = (_turned(scheduled), "the opposite of ") if turned else (scheduled, "")
        fix = f"set its prediction type to {output}" + (" and turn the sign of the output" if turned else "")
        if output == wired.prediction_type:
            fix = "turn the sign of the output"
        yield reading(f"its output is {opposite}{OUTPUTS[output]}, and is read as {read}", fix, right)


def _turned(wired: ScalesAt) -> ScalesAt:
    def turned(level: Tensor) -> Scales:
        scales = wired(level)
        return replace(scales, of_output=-scales.of_output)

    return turned


def _labels(wired: Parameterization, unit: bool) -> Iterator[Reading]:
    """Yield readings in which the network gets the label of another level: a multiple, time reversed, another table."""

    def reading(cause: str, fix: str, other: Callable[[float], float]) -> Reading:
        return Reading(cause, fix, lambda level: asked_again(wired, wired, level, other(level), unit))

    for factor in FACTORS:
        yield reading(
            f"its label stands for {1 / factor:g} times the noise level that there is",
            f"give the network the label of {factor:g} times the level, or mend alpha, sigma or the range of images",
            lambda level, factor=factor: factor * level,  # type: ignore[misc]
        )
    schedule, scale = wired.schedule, 0.5 if unit else 1.0
    if not isinstance(schedule, VESchedule):
        last = len(schedule) - 1 if isinstance(schedule, DDPMSchedule) else 1
        turned = "T - 1 - t" if last > 1 else "1 - t"
        yield reading(
            "time runs backwards",
            f"give the network {turned} where it gets t",
            lambda level: _level(schedule, last - _time(schedule, scale * level)) / scale,
        )
    if isinstance(schedule, DDPMSchedule):
        for name, table in _tables(len(schedule)).items():
            if (table.log_noise_levels - schedule.log_noise_levels).abs().max() > 0.01:
                yield reading(
                    f"its steps are those of the {name} table of betas",
                    f"set beta_schedule to {name}, with the betas of training",
                    lambda level, table=table: _level(schedule, _time(table, scale * level)) / scale,  # type: ignore[misc]
                )


def _time(schedule: Schedule, level: float) -> float:
    return schedule.time(torch.tensor(level, dtype=torch.float64)).item()


def _level(schedule: Schedule, time: float) -> float:
    return schedule.noise_level(torch.tensor(time, dtype=torch.float64)).item()


def _tables(steps: int) -> dict[str, DDPMSchedule]:
    """Return the usual tables of diffusers, by the name of their `beta_schedule`."""
    linear = torch.linspace(1e-4, 0.02, steps, dtype=torch.float64)
    scaled = torch.linspace(0.00085**0.5, 0.012**0.5, steps, dtype=torch.float64) ** 2
    signal = ((torch.arange(steps + 1, dtype=torch.float64) / steps + 0.008) / 1.008 * torch.pi / 2).cos() ** 2
    cosine = (1 - signal[1:] / signal[:-1]).clamp(max=0.999)
    names = {"linear": linear, "scaled_linear": scaled, "squaredcos_cap_v2": cosine}
    return {name: DDPMSchedule((1 - betas).cumprod(0)) for name, betas in names.items()}


def _ranges(denoiser: Denoiser, size: float) -> Iterator[Reading]:
    """Yield readings in which the network is shown images in another range, or latents of another scale."""
    if denoiser.pixel_shape != denoiser.image_shape:
        yield Reading(
            f"its latents have a root mean square of {size:.2g}, and the network expects about 1",
            "scale them as in training (scaling_factor of the autoencoder)",
            lambda level: Asked(level / size, 1 / size),
        )
        return
    known, unit = isinstance(denoiser, NetworkDenoiser), bool(getattr(denoiser, "unit_range", False))
    for name, (scale, shift) in {"[0, 1]": (0.5, 0.5), "[0, 255]": (127.5, 127.5)}.items():
        if not unit:
            yield Reading(
                f"it was trained on images in {name}, and is shown images in [-1, 1]",
                "convert images and noise level in the denoiser (unit_range=True of vg.NetworkDenoiser for [0, 1])",
                lambda level, scale=scale, shift=shift: Asked(scale * level, scale, shift),  # type: ignore[misc]
            )
        if unit == (name == "[0, 1]") or not known:
            yield Reading(
                f"it was trained on images in [-1, 1], and is shown images in {name}",
                "leave images and noise level as they are (unit_range=False of vg.NetworkDenoiser)",
                lambda level, scale=scale, shift=shift: Asked(level / scale, 1 / scale, -shift / scale),  # type: ignore[misc]
            )


def same_at(denoiser: Denoiser, level: float, other: float) -> list[Asked]:
    """Return how to show a network what it sees at a level with the label of another one, for each parameterization."""
    unit = bool(getattr(denoiser, "unit_range", False))
    return [asked_again(wired, wired, level, other, unit) for wired in parameterizations(denoiser)]
