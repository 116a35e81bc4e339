r"""Whether a denoiser means what it says: the error of a posterior mean is orthogonal to every function of its input.

With y = x_0 + level e let h(y) be the noise that a denoiser expects. If h(y) = E[e | y] over the images x_0 that it was
trained on, then for every function f

    E[(e - h(y)) f(y)] = E[ E[e - h(y) | y] f(y) ] = 0                (orthogonality of the conditional mean)

Take for f the answer h, the input y and a constant: the regression of the true noise on these three,

    e = a h(y) + b y / rms(y) + c + rest

has a = 1, b = 0 and c = 0, at every level, however much noise is left over. A wrongly wired model has other
coefficients, and they say what would mend it, for a linear mistake exactly: (-1, 0) is a wrong sign, and an epsilon
taken for v has (1 / alpha, -sigma rms(y)). Only the images are asked, no second model.

**Gain.** Where h is nearly a multiple of y, which it is at high levels, a and b are ill determined and only a h + b y
counts. So the coefficients are judged by what they gain: by how much the loss E|e - h|^2 exceeds that of
a h + b y / rms(y) + c. The gain is cross-fitted: coefficients from one half of the images are tried on the other, so
that it is no larger on few images. A right denoiser gains nothing.

**Errors.** Pixels of an image are not independent. So standard errors are taken over images: for coefficients the
sandwich with one score vector per image, for losses and gains the spread of the images' own.

**Baseline.** `of_input` is the least loss of a multiple of y plus a constant, which takes no network.

Everything follows from the second moments of (e, h, y, 1) within each image, also the loss of every other reading of
the model that is linear in h and y.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from volgrowth.numerics.denoisers import Images
from volgrowth.numerics.precision import in_float64

# (B, 4, 4): means over the pixels of an image of all products of (noise, answer, input, 1)
Moments = Float[Tensor, "batch 4 4"]


@dataclass(frozen=True)
class NoiseFit:
    """The regression of the true noise on a denoiser's answer and its input, at one noise level.

    Attributes:
        noise_level: the level.
        of_answer: coefficient of the answer; 1 if the denoiser is right.
        of_input: coefficient of the input over its root mean square; 0 if the denoiser is right, and where answer and
            input are one direction.
        answer_error: standard error of `of_answer`, over images.
        input_error: standard error of `of_input`, over images.
        total: coefficient of the answer alone. At high levels only this one is well determined; 1 if right.
        collinearity: correlation of answer and input.
        loss: mean squared error of the answer; 1 for an answer of 0.
        baseline: the least loss of a multiple of the input plus a constant.
        gain: share of the loss that the regression takes away, by coefficients from other images; 0 or less if right.
        gain_error: standard error of `gain`, over images.
    """

    noise_level: float
    of_answer: float
    of_input: float
    answer_error: float
    input_error: float
    total: float
    collinearity: float
    loss: float
    baseline: float
    gain: float
    gain_error: float


def noise_moments(noise: Images, answer: Images, y: Images) -> Moments:
    """Return the second moments of noise, answer and input within each image.

    Args:
        noise: the true noise e, (B, *image).
        answer: the noise h(y) that a denoiser expects, (B, *image).
        y: the noisy states x_0 + level e, (B, *image).

    Returns:
        The means over an image's pixels of all products of (noise, answer, input, 1), (B, 4, 4) float64 on the CPU.
    """
    columns = torch.stack([in_float64(part.flatten(1)) for part in (noise, answer, y, torch.ones_like(y))], 1)
    return (columns @ columns.mT / columns.shape[2]).cpu()


def fit_noise(moments: Moments, noise_level: float) -> NoiseFit:
    """Regress the noise on answer, input and 1.

    Args:
        moments: those of `noise_moments` for all images, at least two.
        noise_level: their level, which the result carries.
    """
    scale = torch.ones(4, dtype=torch.float64)
    scale[2] = moments[:, 2, 2].mean().rsqrt()
    moments = moments * scale[:, None] * scale
    total, collinearity = _solve(moments, [1, 3])[0].item(), _correlation(moments.mean(0))
    columns = [1, 2, 3] if 1 - collinearity**2 > ONE_DIRECTION else [1, 3]
    coefficients, errors = _regression(moments, columns)
    losses, rests = _losses(moments, AS_IT_IS), torch.empty(len(moments), dtype=torch.float64)
    halves = torch.arange(len(moments)) % 2 == 0
    for fitted, tried in ((halves, ~halves), (~halves, halves)):
        rests[tried] = _losses(moments[tried], _error(_solve(moments[fitted], columns), columns))
    loss, gains = losses.mean(), losses - rests
    # the error of a ratio of means
    deviation = (gains - gains.mean() / loss * losses) / loss
    return NoiseFit(
        noise_level=noise_level,
        of_answer=coefficients[0].item(),
        of_input=coefficients[1].item() if 2 in columns else 0.0,
        answer_error=errors[0].item(),
        input_error=errors[1].item() if 2 in columns else 0.0,
        total=total,
        collinearity=collinearity,
        loss=loss.item(),
        baseline=_losses(moments, _error(_solve(moments, [2, 3]), [2, 3])).mean().item(),
        gain=(gains.mean() / loss).item(),
        gain_error=(deviation.std() / len(moments) ** 0.5).item(),
    )


# below this 1 - correlation^2 answer and input are one direction, and the answer alone has a coefficient
ONE_DIRECTION = 1e-6
# the error e - h as factors of (noise, answer, input, 1)
AS_IT_IS = (1.0, -1.0, 0.0, 0.0)


def combined(moments: Moments, of_answer: float, of_input: float, of_one: float) -> Moments:
    """Return the moments of the answer `of_answer` h(y) + `of_input` y + `of_one`, from those of h."""
    change = torch.eye(4, dtype=torch.float64)
    change[1] = torch.tensor([0.0, of_answer, of_input, of_one], dtype=torch.float64)
    return change @ moments @ change.mT


def _losses(moments: Tensor, factors: Sequence[float]) -> Tensor:
    weights = torch.tensor(factors, dtype=torch.float64)
    return torch.einsum("i,bij,j->b", weights, moments, weights)


def _error(coefficients: Tensor, columns: Sequence[int]) -> list[float]:
    """Return the error of a regression as factors of (noise, answer, input, 1)."""
    factors = [1.0, 0.0, 0.0, 0.0]
    for column, coefficient in zip(columns, coefficients.tolist(), strict=True):
        factors[column] = -coefficient
    return factors


def _correlation(mean: Tensor) -> float:
    """Return the correlation of answer and input; 0 if one of them is constant."""
    together = mean[1, 2] - mean[1, 3] * mean[2, 3]
    spread = (mean[1, 1] - mean[1, 3] ** 2).clamp(min=0) * (mean[2, 2] - mean[2, 3] ** 2).clamp(min=0)
    return (together / spread.sqrt()).item() if spread > 0 else 0.0


def _solve(moments: Tensor, columns: list[int]) -> Tensor:
    """Return the coefficients of the noise on the columns; of two that are one direction, the smallest that fit."""
    mean = moments.mean(0)
    return torch.linalg.lstsq(mean[columns][:, columns], mean[columns, 0], rcond=1e-14, driver="gelsd").solution


def _regression(moments: Tensor, columns: list[int]) -> tuple[Tensor, Tensor]:
    """Return coefficients and their standard errors over images."""
    coefficients, count = _solve(moments, columns), len(moments)
    scores = moments[:, columns, 0] - moments[:, columns][:, :, columns] @ coefficients
    inverse = torch.linalg.pinv(moments.mean(0)[columns][:, columns], rcond=1e-14, hermitian=True)
    covariance = inverse @ (scores.mT @ scores) @ inverse / (count * max(count - 1, 1))
    return coefficients, covariance.diagonal().clamp(min=0).sqrt()
