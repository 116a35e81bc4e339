"""What numbers can get wrong: sign, scale, noise level, range of pixels, conditions."""

from collections.abc import Callable
from functools import partial
from math import prod

import torch
from torch import Tensor

from volgrowth.numerics.denoisers import Denoiser
from volgrowth.testing.bench import Bench, apart, cosine, rms, scalar
from volgrowth.testing.verdict import Check, judged, reason

UNFAMILIAR = ", or the images are unlike those of training: give some as images="
UNTRAINED = "expected of a trained model: see what its output means and which label it is given"

# other ways to get the noise at y and level out of a model
Reading = Callable[[Bench, Tensor, float], Tensor]


def _told(bench: Bench, y: Tensor, level: float, factor: float) -> Tensor:
    """The noise of y if there is so many times more of it."""
    return factor * bench.noise(y, factor * level)


def _labelled(bench: Bench, y: Tensor, level: float, factor: float) -> Tensor:
    """The same network input, for models that preserve variance, with the label of another level."""
    return bench.noise(y * ((1 + (factor * level) ** 2) / (1 + level**2)) ** 0.5, factor * level)


FACTORS = (0.25, 0.5, 2.0, 4.0)
READINGS: dict[str, Reading] = {
    **{f"told {factor:g} times the noise level": partial(_told, factor=factor) for factor in FACTORS},
    **{f"with the label of {factor:g} times the noise level": partial(_labelled, factor=factor) for factor in FACTORS},
    "shown images in [0, 1]": lambda bench, y, level: bench.noise((y + 1) / 2, level / 2),
    "shown images in [0, 255]": lambda bench, y, level: bench.noise((y + 1) * 127.5, level * 127.5),
}
# a reading that is no accident is better at every level, as one of an untrained model is not, and by this on average
BETTER = 0.9
# a loss so small is none
SMALL = 1e-3


def meaning(bench: Bench) -> Check:
    """A sign or an output mistaken for another: growth turns into shrinking, noise into images."""
    y = bench.noisy(bench.high)
    if cosine(bench.noise(y, bench.high), bench.e) < -0.8:
        return Check(
            "FAIL", "noise is the opposite of the noise", "expected y = x + noise_level * noise: turn its sign"
        )
    if rms(bench.denoised(y, bench.high) - bench.e) < 0.2:
        return Check("FAIL", "__call__ gives the noise", "expected the clean image: call this `noise`, and subtract it")
    noises = [bench.noise(bench.noisy(level), level) for level in (bench.low, bench.middle[0])]
    if all(rms(noise - bench.clean) < 0.5 * rms(bench.clean) for noise in noises):
        return Check("FAIL", "noise gives the clean image", "expected (y - that) / noise_level: call this `__call__`")
    return Check("ok", "noise is no image, and the image no noise")


def lowest(bench: Bench) -> Check:
    """Where an audit starts the image is all but clean: what moves it by more than its noise drowns its growth."""
    size = rms(bench.noise(bench.noisy(bench.low), bench.low))
    return judged(
        size <= 3,
        f"at noise level {bench.low:.3g} images are moved by {size:.2g} times the noise",
        f"expected about 1 or less: noise_levels start too low, labels or outputs are misread{_unfamiliar(bench)}",
        "WARN",
    )


def highest(bench: Bench) -> Check:
    """Where volume ends all data look like one point, noise = y / noise_level; a likelihood is told from there."""
    y = bench.noisy(bench.high)
    off, allowed = rms(bench.noise(y, bench.high) - y / bench.high), 0.1 + 2 * max(rms(bench.clean), 0.5) / bench.high
    return judged(
        off <= allowed,
        f"at noise level {bench.high:.3g} the noise is y / noise_level but for {off:.2g}",
        f"expected at most {allowed:.2g} {UNTRAINED.removeprefix('expected ')}",
        "WARN",
    )


def denoising(bench: Bench) -> Check:
    """Calibration compares losses and growth of a model that denoises; one that does not has nothing memorized."""
    losses = [_loss(bench, level, bench.noise) for level in bench.middle]
    mean = sum(losses) / len(losses)
    return judged(
        mean < 1,
        f"mean |noise - e|^2 is {', '.join(f'{loss:.2g}' for loss in losses)} at noise levels "
        f"{', '.join(f'{level:g}' for level in bench.middle)}",
        f"below 1, which saying nothing gives, is {UNTRAINED}{_unfamiliar(bench)}",
        "WARN",
    )


def _loss(bench: Bench, level: float, noise: Callable[[Tensor, float], Tensor]) -> float:
    return rms(noise(bench.noisy(level), level) - bench.e) ** 2


def _unfamiliar(bench: Bench) -> str:
    return "" if bench.given else UNFAMILIAR


def reading(bench: Bench) -> Check:
    """A label of another level, or images in another range: scores are those of images blurred or cut.

    The right denoiser is the best there is, also than itself told something else. Blobs are easier than what a model
    was trained on, so that it does better told that there is more noise: this needs its own images.
    """
    if not bench.given or bench.denoiser.pixel_shape != bench.denoiser.image_shape:
        return Check("skip", "whether noise levels and range of pixels are those of training", "give images= in pixels")
    as_it_is = [_loss(bench, level, bench.noise) + SMALL for level in bench.middle]
    gains = {}
    for other, noise in READINGS.items():
        losses = [_loss(bench, level, partial(noise, bench)) + SMALL for level in bench.middle]
        ratios = [new / old for new, old in zip(losses, as_it_is, strict=True)]
        if max(ratios) < 1:
            gains[other] = prod(ratios) ** (1 / len(ratios))
    best = min(gains, key=lambda other: gains[other], default="")
    return judged(
        gains.get(best, 1.0) > BETTER,
        f"{best} its error is {gains[best]:.2g} times what it is" if best else "best as it is",
        "expected more: convert the label, or the range of images, to that of training",
        "WARN",
    )


def conditions(bench: Bench) -> Check:
    """Conditional growth less unconditional growth finds memorized captions; rows mixed up find nothing."""
    if bench.conditions is None:
        needed = bench.denoiser.condition
        seen = f"what a {needed} does" if needed else "takes none"
        return Check("skip" if needed else "ok", seen, "give some as conditions=[...]" if needed else "")
    if problem := next(filter(None, map(bench.denoiser.problem, bench.conditions)), None):
        return Check("FAIL", problem, "expected `problem` to give None for these conditions")
    level, rows = bench.middle[-1], list(range(len(bench.clean)))
    y, turned = bench.noisy(level), rows[1:] + rows[:1]
    first = bench.bound(rows)
    noise, other, again = _noise(first, y, level), bench.noise(y, level, turned), _noise(first, y, level)
    if apart(noise, again) > bench.tolerance:
        return Check("FAIL", "`given` changes what was given before", "expected a new denoiser: copy.copy(self)")
    error = apart(bench.noise(y.repeat_interleave(2, 0), level), noise.repeat_interleave(2, 0))
    if error > bench.tolerance:
        mend = "expected the same: repeat_interleave conditions to len(y)"
        return Check("FAIL", f"two points for each image differ by {error:.0e} from one", mend)
    effects = {"another condition": apart(noise, other)} if len(set(bench.conditions)) > 1 else {}
    if bench.denoiser.has_null:
        effects["none"] = apart(noise, _noise(bench.denoiser, y, level))
    return judged(
        min(effects.values(), default=1.0) > 1e-5,
        f"noise changes {', '.join(f'by {effect:.0e} with {what}' for what, effect in effects.items()) or 'unseen'}",
        "expected more than nothing: the condition does not reach the network, or was never learned",
        "WARN",
    )


def _noise(denoiser: Denoiser, y: Tensor, level: float) -> Tensor:
    with torch.no_grad():
        return denoiser.noise(y, scalar(level))


def sampling(bench: Bench) -> Check:
    """Only `volgrowth verify` draws samples; an audit goes without."""
    steps = 10
    try:
        levels = bench.denoiser.sampling_levels(steps)
    except ValueError as error:
        return Check("WARN", reason(error).partition(": ")[2], "volgrowth verify cannot draw samples")
    return judged(
        len(levels) > 1 and bool((levels.diff() > 0).all()) and levels[0].item() > 0,
        f"{len(levels)} noise levels for {steps} steps, {levels[0]:.3g} to {levels[-1]:.3g}",
        "expected two or more, rising from above 0: mend `sampling_levels`",
    )
