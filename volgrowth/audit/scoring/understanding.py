"""Whether a model is understood: is its answer the expected noise of these images, and if not, what is wrong with it?

The regression of `volgrowth.numerics.orthogonality` says whether, on images that the model was trained on. It needs one
evaluation per image and level. Only where it fails, the readings of `volgrowth.audit.scoring.readings` are tried, and
the one that predicts the noise best names the mistake.

Limits come from trained networks of every family; docs/mathematics.md has the table. A trained network gains next to
nothing from the regression, also one that has overfit 27 images. One that has learned little gains more, and is not
wrong: so a middling gain counts only if a reading explains it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import log
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from volgrowth.audit.scoring.derivatives import true_float32
from volgrowth.audit.scoring.readings import Asked, Reading, readings, same_at
from volgrowth.audit.workers.fitting import BatchSize
from volgrowth.audit.workers.seeding import seeded
from volgrowth.numerics import Denoiser
from volgrowth.numerics.denoisers import Condition
from volgrowth.numerics.orthogonality import NoiseFit, combined, fit_noise, noise_moments

# levels at which images are neither clear nor gone; at the last one answer and input are nearly one direction, so that
# it is shown and not judged
LEVELS = (0.1, 0.3, 1.0, 3.0)
FEWEST = 4
# images times noises at each level: few images get several noises
EVALUATIONS = 64

# gain from the regression at one level above which a reading is looked for, and gain at two levels above which the
# model is refused without one: at the lowest an x_0 network errs by several times the noise until it is trained
DOUBTFUL, REFUSED = 0.02, 0.15
# standard errors by which a gain must exceed those
CERTAIN = 2.0
# a reading counts if the geometric mean of its losses is at most this share of what they are
BETTER = 0.93
# ... and if it is right itself: no more than this is gained from it
EXPLAINED = 0.15
# a network has learned something if at one level its loss is below this share of the best multiple of its input's
LEARNED = 0.98
# there is something to learn if blurring the input takes the loss below this share of that
LEARNABLE = 0.95
# share of an answer by which it changes under another label, below which labels are not seen
UNSEEN = 1e-5
# loss of a model that knows the clean image
KNOWN = 1e-2
SMALL = 1e-3
# correlation of answer and input above which only the sum of their coefficients is shown
ONE_DIRECTION = 0.97

Verdict = Literal["right", "wrong", "untested"]


@dataclass(frozen=True)
class ModelCheck:
    """What the regression of the true noise says about a model.

    Attributes:
        verdict: `right`; `wrong`; `untested` if there were too few images.
        images: how many images were used.
        levels: the regression at each noise level.
        cause: what is wrong, or why the model was not tested; empty if it is right.
        fix: what to do; empty if it is right.
    """

    verdict: Verdict
    images: int
    levels: tuple[NoiseFit, ...] = ()
    cause: str = ""
    fix: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the content of `model-check.json`."""
        return {**asdict(self), "levels": [asdict(fit) for fit in self.levels]}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "ModelCheck":
        """Return the check that `to_json` described."""
        return cls(**{**content, "levels": tuple(NoiseFit(**fit) for fit in content["levels"])})

    @property
    def seen(self) -> str:
        """The coefficients and the losses in words."""
        pairs = " / ".join(_pair(fit) for fit in self.levels)
        levels, losses = (
            " / ".join(f"{value:.2g}" for value in values)
            for values in ([fit.noise_level for fit in self.levels], [fit.loss for fit in self.levels])
        )
        return (
            f"at noise levels {levels} the true noise is {pairs} times answer and input (1 +0 if right), and the loss "
            f"is {losses} (1 for an answer of 0)"
        )


def _pair(fit: NoiseFit) -> str:
    """Return the two coefficients, or their sum where answer and input are nearly one direction."""
    if abs(fit.collinearity) > ONE_DIRECTION:
        return f"{fit.total:.2f} in all"
    return f"{fit.of_answer:.2f} {fit.of_input:+.2f}"


class NoisyStates:
    """States with fixed noises, and the model asked about them in batches that fit the device.

    Args:
        denoiser: the model.
        states: clean states (B, *state).
        conditions: one per state, or None.
        seed: of the noises.
        batch: size of the batches.
    """

    def __init__(
        self, denoiser: Denoiser, states: Tensor, conditions: Sequence[Condition] | None, seed: int, batch: BatchSize
    ):
        self.denoiser, self.conditions, self.batch = denoiser, conditions, batch
        self.states = states.cpu()
        count = -(-EVALUATIONS // len(states)) if len(states) else 0
        shape = (count, *states.shape[1:])
        # one generator for each image, so that its noises do not depend on the others
        self.noises = [torch.randn(shape, generator=seeded(seed, "model check", row)) for row in range(len(states))]

    @property
    def size(self) -> float:
        """Root mean square of the states."""
        return self.states.double().square().mean().sqrt().item()

    @torch.no_grad()
    def moments(
        self, level: float, asked: Asked | None = None, target: Asked | None = None, count: int | None = None
    ) -> Tensor:
        """Return the moments of noise, answer and input, (B, 4, 4).

        Args:
            level: the noise level of the states.
            asked: how the model is asked; by default as it is.
            target: ask for this answer of the model too, and put it in the place of the true noise.
            count: take only the first states, and one noise of each; by default all.
        """
        how, parts = asked or Asked(level), list[Tensor]()

        def work(rows: Sequence[int]) -> None:
            bound, some = self.denoiser, slice(rows[0], rows[-1] + 1)
            if self.conditions is not None:
                bound = bound.given([self.conditions[row] for row in rows])
            clean = self.states[some].to(bound.device, bound.dtype)
            noises = torch.stack(self.noises[some]).to(bound.device, bound.dtype)[:, : None if count is None else 1]
            total = torch.zeros(len(rows), 4, 4, dtype=torch.float64)
            for e in noises.unbind(1):
                y = clean + level * e
                true = e if target is None else _answer(bound, y, target)
                total += noise_moments(true, _answer(bound, y, how), y)
            parts.append(total / noises.shape[1])

        self.batch.each(range(len(self.states[:count])), work)
        return torch.cat(parts)

    def blurred(self, level: float) -> Tensor:
        """Return the moments of noise, blurred input and input, which take no evaluation."""
        noise = torch.stack([noises[0] for noises in self.noises])
        y = self.states.float() + level * noise
        return noise_moments(noise, avg_pool2d(y, 3, 1, 1, count_include_pad=False), y)


def _answer(denoiser: Denoiser, y: Tensor, how: Asked) -> Tensor:
    point = y if (how.scale, how.shift) == (1.0, 0.0) else how.scale * y + how.shift
    return denoiser.noise(point, torch.tensor(how.level, dtype=torch.float64))


def examine(images: NoisyStates, levels: Sequence[float] = LEVELS) -> ModelCheck:
    """Measure whether a model's answer is the expected noise of these images, and find out what is wrong if it is not.

    Args:
        images: states of images that the model was trained on.
        levels: noise levels, clamped to the model's trained range; the highest is shown and not judged.
    """
    with true_float32():
        low, high = images.denoiser.noise_levels or (0.0, float("inf"))
        levels = sorted({min(max(level, low), high) for level in levels})
        if len(images.states) < FEWEST:
            return untested(len(images.states))
        moments = {level: images.moments(level) for level in levels}
        finite = torch.stack([each.isfinite().all((1, 2)) for each in moments.values()]).all(0)
        if (count := int(finite.sum())) < FEWEST:
            return untested(count)
        fits = tuple(fit_noise(each[finite], level) for level, each in moments.items())
        cause, fix = _fault(images, fits, moments, finite)
        return ModelCheck("wrong" if cause else "right", count, fits, cause, fix)


def untested(count: int) -> ModelCheck:
    """Return the check of a model on too few images."""
    return ModelCheck("untested", count, (), f"{count} images with finite answers, and {FEWEST} are needed")


def _fault(
    images: NoisyStates, fits: tuple[NoiseFit, ...], moments: dict[float, Tensor], finite: Tensor
) -> tuple[str, str]:
    """Return cause and fix of what is wrong with a model; two empty texts if nothing is."""
    judged = fits[:-1] if len(fits) > 1 else fits
    gain = _gain(judged)
    learnable = _learnable(images, fits)
    learned = _learned(fits) or not learnable
    if not learned or gain > DOUBTFUL:
        if _blind(images, judged):
            return BLIND
        reading = _best_reading(images, judged, moments, finite, learnable)
        if reading:
            return reading.cause, reading.fix
    if not learned:
        return UNTRAINED
    if _gain(judged, levels=2) > REFUSED:
        return UNKNOWN
    return BLIND if _blind(images, judged) else ("", "")


UNTRAINED = (
    "at no level it is better than a multiple of its input, as a network with its initial weights",
    "load the trained weights",
)
BLIND = (
    "its answer does not depend on the noise level",
    "pass the level on to the network as its label",
)
UNKNOWN = (
    "none of the mistakes that were tried explains it",
    "audit images that the model was trained on, prepared as in training, see what its output, label and range are, "
    "and whether its samples are images: if not, its training broke down",
)


def _learnable(images: NoisyStates, fits: tuple[NoiseFit, ...]) -> bool:
    """Say whether images have more to learn than their size: a blur removes noise better than a multiple of the input.

    Of images whose pixels are independent, a multiple of the input is the posterior mean.
    """
    if images.states.ndim != 4 or min(images.states.shape[2:]) < 3:
        return False
    blurs = [fit_noise(images.blurred(fit.noise_level), fit.noise_level) for fit in fits]
    return any(blur.loss * (1 - blur.gain) < LEARNABLE * blur.baseline for blur in blurs)


def _blind(images: NoisyStates, fits: Sequence[NoiseFit]) -> bool:
    """Say whether the network gives the same output to the same input whatever label it gets.

    Its output under another label, read with the first one, is compared with the answer. Where the answer is a multiple
    of the input there may be no network behind it, and where it leaves no loss the clean image is known at any label.
    """
    first, last = fits[0], fits[-1]
    known = min(first.loss, last.loss) < KNOWN or 1 - first.collinearity**2 < SMALL
    if first.noise_level == last.noise_level or known:
        return False
    for asked in same_at(images.denoiser, first.noise_level, last.noise_level):
        found = images.moments(first.noise_level, asked, target=Asked(first.noise_level), count=FEWEST)
        again = combined(found, asked.of_answer, asked.of_input, asked.of_one).mean(0)
        if again[0, 0] - 2 * again[0, 1] + again[1, 1] < UNSEEN * again[0, 0]:
            return True
    return False


def _best_reading(
    images: NoisyStates, fits: tuple[NoiseFit, ...], moments: dict[float, Tensor], finite: Tensor, learnable: bool
) -> Reading | None:
    """Return the reading that predicts the noise best, if it does much better and is right where the model is not."""
    best, least = None, log(BETTER)
    # the right one helps most where most is wrong: the others cost one evaluation an image
    fits = tuple(sorted(fits, key=lambda fit: -fit.gain))
    for reading in readings(images.denoiser, images.size):
        again = list[NoiseFit]()
        for fit in fits:
            asked = reading.asked(fit.noise_level)
            same = (asked.level, asked.scale, asked.shift) == (fit.noise_level, 1.0, 0.0)
            found = (moments[fit.noise_level] if same else images.moments(fit.noise_level, asked))[finite]
            if not found.isfinite().all():
                break
            read = combined(found, asked.of_answer, asked.of_input, asked.of_one)
            again.append(fit_noise(read, fit.noise_level))
            if again[0].loss > BETTER * fits[0].loss:
                break
        else:
            ratio = sum(log((new.loss + SMALL) / (old.loss + SMALL)) for new, old in zip(again, fits, strict=True))
            if (_learned(again) or not learnable) and ratio / len(fits) < least and _gain(again) < EXPLAINED:
                best, least = reading, ratio / len(fits)
    return best


def _learned(fits: Sequence[NoiseFit]) -> bool:
    """Say whether a network is better than a multiple of its input at some level."""
    return any(fit.loss < LEARNED * fit.baseline for fit in fits)


def _gain(fits: Sequence[NoiseFit], levels: int = 1) -> float:
    """Return the gain that is certain at so many levels at least."""
    return sorted(fit.gain - CERTAIN * fit.gain_error for fit in fits)[-min(levels, len(fits))]
