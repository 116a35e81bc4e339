"""Checks of what the numbers mean: sign, scale, noise level, range of pixels, conditions."""

from collections.abc import Callable

import torch
from torch import Tensor

from volgrowth.audit.scoring.understanding import FEWEST, NoisyStates, examine
from volgrowth.audit.workers.fitting import BatchSize
from volgrowth.errors import kind_and_line
from volgrowth.numerics.denoisers import Denoiser
from volgrowth.numerics.precision import in_float64
from volgrowth.testing.probe import DenoiserProbe, level_tensor, relative_distance, rms
from volgrowth.testing.verdict import DenoiserCheck, failure, judged

# of the noises that images get
SEED = 20_250_322


def check_meaning(probe: DenoiserProbe) -> DenoiserCheck:
    """Check that noise and image are not mistaken for one another, and that the noise has the right sign.

    Otherwise growth would be shrinking, or would be that of something else.
    """
    y = probe.noisy(probe.high)
    noise = probe.noise(y, probe.high)
    if (in_float64(noise) * in_float64(probe.e)).mean().item() < -0.8 * rms(noise) * rms(probe.e):
        return failure("noise is the opposite of the noise", "expected y = x + noise_level * noise: turn its sign")
    if rms(probe.denoised(y, probe.high) - probe.e) < 0.2:
        return failure("__call__ gives the noise", "expected the clean image: call this `noise`, and subtract it")
    noises = [probe.noise(probe.noisy(level), level) for level in (probe.low, probe.middle[0])]
    if all(rms(noise - probe.clean) < 0.5 * rms(probe.clean) for noise in noises):
        return failure("noise gives the clean image", "expected (y - that) / noise_level: call this `__call__`")
    return DenoiserCheck("ok", "noise is no image, and the image no noise")


def check_denoising(probe: DenoiserProbe) -> DenoiserCheck:
    """Check that the noise is close to e: an audit finds nothing memorized in a model that does not denoise.

    Each level has its own limit. At the lowest an image is all but clean, and moving it by several times its noise
    drowns its growth. In the middle the mean square must be below 1, which an answer of 0 reaches. At the highest all
    data look like one point, so that the noise is y / noise_level; a likelihood starts from there.
    """
    limits = [
        ([probe.low], 3.0),
        (probe.middle, 1.0),
        ([probe.high], 0.1 + 2 * max(rms(probe.clean), 0.5) / probe.high),
    ]
    seen, wrong, expected = list[str](), list[str](), list[str]()
    for levels, limit in limits:
        error = (sum(_loss(probe, level, probe.noise) for level in levels) / len(levels)) ** 0.5
        seen.append(f"by {error:.2g} at noise level {', '.join(f'{level:.3g}' for level in levels)}")
        if not error < limit:
            wrong.append(seen[-1])
            expected.append(f"{limit:.2g}")
    unfamiliar = "" if probe.given else ", or the images are unlike those of training: give some as images="
    return judged(
        not wrong,
        f"the noise is off {' and '.join(wrong or seen)}",
        f"expected below {' and '.join(expected)} of a trained model: noise levels start too low, or labels or outputs "
        f"are misread{unfamiliar}",
        "WARN",
    )


def _loss(probe: DenoiserProbe, level: float, noise: Callable[[Tensor, float], Tensor]) -> float:
    """Return the mean squared error of the noise at a level."""
    return rms(noise(probe.noisy(level), level) - probe.e) ** 2


def check_orthogonality(probe: DenoiserProbe) -> DenoiserCheck:
    """Check that the error of the noise is orthogonal to the answer and to the input, as that of a posterior mean is.

    A model that is read wrongly (another output, sign, label, schedule or range of images) fails, whatever its loss.
    `volgrowth audit` does the same before it scores. The check needs images of training, over which the mean is taken.
    """
    if not probe.given:
        return DenoiserCheck("skip", "whether output, noise levels and range of pixels are those of training", GIVE)
    found = examine(NoisyStates(probe.denoiser, probe.clean, probe.conditions, SEED, BatchSize(len(probe.clean))))
    if found.verdict == "untested":
        return DenoiserCheck("skip", found.cause, GIVE)
    return judged(found.verdict == "right", found.seen, f"{found.cause}: {found.fix}")


GIVE = f"give images= of {FEWEST} or more images that the model was trained on"


def check_conditions(probe: DenoiserProbe) -> DenoiserCheck:
    """Check that conditions reach the network and stay with their rows.

    Conditional growth less unconditional growth finds memorized captions; if rows are mixed up it finds nothing.
    """
    if probe.conditions is None:
        needed = probe.denoiser.condition
        seen = f"what a {needed} does" if needed else "takes none"
        return DenoiserCheck("skip" if needed else "ok", seen, "give some as conditions=[...]" if needed else "")
    if problem := next(filter(None, map(probe.denoiser.problem, probe.conditions)), None):
        return failure(problem, "expected `problem` to give None for these conditions")
    level, rows = probe.middle[-1], list(range(len(probe.clean)))
    y, turned = probe.noisy(level), rows[1:] + rows[:1]
    first = probe.bound(rows)
    noise, other, again = _noise(first, y, level), probe.noise(y, level, turned), _noise(first, y, level)
    if relative_distance(noise, again) > probe.tolerance:
        return failure("`given` changes what was given before", "expected a new denoiser: copy.copy(self)")
    error = relative_distance(probe.noise(y.repeat_interleave(2, 0), level), noise.repeat_interleave(2, 0))
    if error > probe.tolerance:
        mend = "expected the same: repeat_interleave conditions to len(y)"
        return failure(f"two points for each image differ by {error:.0e} from one", mend)
    effects = {"another condition": relative_distance(noise, other)} if len(set(probe.conditions)) > 1 else {}
    if probe.denoiser.has_null:
        effects["none"] = relative_distance(noise, _noise(probe.denoiser, y, level))
    return judged(
        min(effects.values(), default=1.0) > 1e-5,
        f"noise changes {', '.join(f'by {effect:.0e} with {what}' for what, effect in effects.items()) or 'unseen'}",
        "expected more than nothing: the condition does not reach the network, or was never learned",
        "WARN",
    )


def _noise(denoiser: Denoiser, y: Tensor, level: float) -> Tensor:
    with torch.no_grad():
        return denoiser.noise(y, level_tensor(level))


def check_sampling(probe: DenoiserProbe) -> DenoiserCheck:
    """Check the noise levels that `volgrowth verify` draws samples along; an audit does without them."""
    steps = 10
    try:
        levels = probe.denoiser.sampling_levels(steps)
    except ValueError as error:
        return DenoiserCheck("WARN", kind_and_line(error).partition(": ")[2], "volgrowth verify cannot draw samples")
    return judged(
        len(levels) > 1 and bool((levels.diff() > 0).all()) and levels[0].item() > 0,
        f"{len(levels)} noise levels for {steps} steps, {levels[0]:.3g} to {levels[-1]:.3g}",
        "expected two or more, rising from above 0: mend `sampling_levels`",
    )
