r"""How often a sampler makes an image, measured without waiting for it: importance sampling of the sampler's noise.

**Rate.** A deterministic sampler turns noise z ~ N(0, I) into an image. With A the region of noise that becomes a copy
of x, the rate is the probability of A,

    rate = P(z in A) = E_q[1_A(z) N(z; 0, I) / q(z)]

for any proposal q that is positive on A. The paper's claim that the volume of an image's region in noise is the
probability of the image (arXiv 2503.19429) is this equation, and A is measured with the sampler that users run, on its
own grid of noise levels.

**Shifts.** Noise that becomes x is shifted. Take y = x + s e, e ~ N(0, I), and carry y up the flow to the last noise
level; in units of that level's spread it arrives at

    z = b_s + a e + a remainder of mean 0

where a is the regression of z on e. b_s = E[z - a e] is the shift of the noise that passes by x at the noise level s.
Since e is known, the mean over a few draws of e gives b_s with little noise, also in thousands of dimensions, where the
mean of z itself would be nearly all noise. At a large s the shift is short, and few of N(b_s, I) become x; at a small
one it is long, and many do, with unequal weights.

**Proposal.** q is the mixture of N(b_s, I) for a ladder of levels s, and of N(0, I) itself. The weight of a draw is

    w(z) = N(z; 0, I) / q(z) = 1 / sum_s c_s exp(b_s . z - |b_s|^2 / 2)

(the balance heuristic of Veach and Guibas, 1995). Since N(0, I) has the share c_0 >= `LEAST_PLAIN`, no weight is above
1 / c_0, and no region of A is left out. Draws are made in rounds. After each round the mixture gets one more part,
whose shift is the weighted mean of the noise that became x, within the space that the shifts b_s span (the
cross-entropy method; in all directions the mean of some tens of draws would be noise). Its shares are those that
minimise the variance, E_q[1_A w^2], estimated from all rounds so far (Owen and Zhou, JASA 95, 2000). The first round,
with equal shares, counts for nothing else. Each later round is drawn from a proposal that does not depend on it, so
that the estimate of a fixed number of rounds has no bias:

    rate = mean of 1_A(z) w(z)

**Interval.** The mean has a relative standard error r, and the interval is rate exp(+-1.96 r), of a log-normal
estimate. It means nothing for few returns or for weights that a few draws dominate: the rate is then not measurable.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from volgrowth.numerics.denoisers import Denoiser, Images
from volgrowth.numerics.flow import decode, encode

LADDER = (1.5, 3.0, 6.0, 12.0, 24.0)
"""Noise levels whose shifts make the proposal, for images in [-1, 1]: where a sampler decides what it makes."""
PILOTS = 16
"""Draws of e for each shift."""
ROUND = 64
"""Draws of noise that are decoded before the estimate is looked at."""
LEAST_PLAIN = 0.1
"""Smallest share of N(0, I) in the proposal."""
FEWEST = 10
"""Returns, and effective number of returns, below which a rate is not measurable."""

Returns = Callable[[Images], Bool[Tensor, "batch"]]


@dataclass(frozen=True)
class GenerationRate:
    """The rate at which a sampler makes copies of an image.

    Attributes:
        rate: copies per sample; NaN if it is not measurable.
        low, high: 95% interval of the rate; NaN if it is not measurable.
        draws: draws of noise behind the rate.
        returned: number of draws that became a copy.
        effective: effective number of the draws that became a copy, (sum w)^2 / sum w^2 (Kish).
        nfe: network evaluations for this image.
    """

    rate: float
    low: float
    high: float
    draws: int
    returned: int
    effective: float
    nfe: int

    @property
    def measurable(self) -> bool:
        """True if the rate is known within its interval."""
        return self.rate == self.rate


def generation_rate(
    denoiser: Denoiser,
    image: Float[Tensor, "*image"],
    returns: Returns,
    noise_levels: Float[Tensor, "nodes"],
    spread: float | None = None,
    factor: float = 2.0,
    most_draws: int = 2048,
    batch_size: int = ROUND,
    generator: torch.Generator | None = None,
) -> GenerationRate:
    """Measure how often a sampler makes copies of an image.

    Args:
        denoiser: the model.
        image: the image, as a state of the model: its latents if it has any.
        returns: function that says which of the decoded states (B, *image) are copies of the image.
        noise_levels: (nodes,) rising, the sampler's own.
        spread: standard deviation of the sampler's first states, by default that of the noise at its last level.
        factor: the interval wanted: from rate / factor to rate * factor, above 1.
        most_draws: draws after which the search for a narrower interval ends.
        batch_size: number of states that the network sees at a time; it changes at most a rounding.
        generator: draws the noise, on the CPU so that every device draws the same; by default torch's global one.

    Returns:
        The rate; not measurable if fewer than `FEWEST` draws become a copy, or if few of them outweigh the others.

    Raises:
        ValueError: the factor is not above 1, or there are fewer than two noise levels.
    """
    if not factor > 1:
        raise ValueError(f"factor is {factor}: expected above 1")
    if len(noise_levels) < 2:
        raise ValueError(f"there are {len(noise_levels)} noise levels: expected at least 2")
    spread = noise_levels[-1].item() if spread is None else spread
    shifts, spent = _shifts(denoiser, image, noise_levels, spread, batch_size, generator)
    plain = _Proposal(shifts, torch.full((len(shifts),), 1 / len(shifts), dtype=torch.float64))
    proposal, known, weights, draws = plain, shifts[:0], list[Tensor](), 0
    while not draws or (draws <= most_draws - ROUND and _too_wide(weights, draws - ROUND, factor)):
        noise = proposal.draw(ROUND, generator)
        states = (noise.view(-1, *image.shape).to(denoiser.device, denoiser.dtype) * spread).split(batch_size)
        noise = noise[torch.cat([returns(decode(denoiser, some, noise_levels)).cpu() for some in states])]
        weights.append(proposal.weights(noise))
        known, draws = torch.cat([known, noise]), draws + ROUND
        proposal = plain.improved(known, torch.cat(weights))
    counted = torch.cat(weights[1:]) if len(weights) > 1 else known[:0, 0]
    return _estimate(counted, draws - ROUND, spent + draws * len(noise_levels))


def _shifts(
    denoiser: Denoiser,
    image: Tensor,
    noise_levels: Tensor,
    spread: float,
    batch_size: int,
    generator: torch.Generator | None,
) -> tuple[Float[Tensor, "shifts pixels"], int]:
    """Return the shifts of the ladder, the first of which is 0, and the evaluations that they took."""
    found, spent = [torch.zeros(image.numel(), dtype=torch.float64)], 0
    for level in LADDER:
        above = noise_levels[noise_levels > 1.01 * level]
        if not len(above):
            break
        grid = torch.cat([above.new_tensor([level]), above])
        e = torch.randn((PILOTS, *image.shape), generator=generator)
        y = torch.cat([encode(denoiser, some, grid) for some in (image + level * e.to(image)).split(batch_size)])
        z, e = (part.flatten(1).cpu().double() for part in (y / spread, e))
        found.append((z - (z * e).sum() / (e * e).sum() * e).mean(0))
        spent += PILOTS * (len(grid) - 1)
    return torch.stack(found), spent


@dataclass(frozen=True)
class _Proposal:
    """A mixture of normal distributions of noise, N(shift, I) each.

    Attributes:
        shifts: (shifts, pixels), the first of which is 0.
        shares: of the mixture, (shifts,), their sum is 1.
    """

    shifts: Tensor
    shares: Tensor

    def draw(self, count: int, generator: torch.Generator | None) -> Float[Tensor, "draws pixels"]:
        """Draw noise; each part of the mixture gets its share of the draws, give or take one."""
        places = (torch.arange(count) + torch.rand(1, generator=generator)) / count
        which = torch.searchsorted(self.shares.cumsum(0), places.double()).clamp(max=len(self.shares) - 1)
        return self.shifts[which] + torch.randn((count, self.shifts.shape[1]), generator=generator).double()

    def densities(self, noise: Float[Tensor, "draws pixels"]) -> Float[Tensor, "draws shifts"]:
        """Return the density of each part at the noise, over that of N(0, I)."""
        return (noise @ self.shifts.T - self.shifts.square().sum(1) / 2).exp()

    def weights(self, noise: Float[Tensor, "draws pixels"]) -> Float[Tensor, "draws"]:
        """Return N(z; 0, I) / q(z)."""
        return 1 / (self.densities(noise) @ self.shares)

    def improved(self, returned: Float[Tensor, "draws pixels"], weights: Float[Tensor, "draws"]) -> "_Proposal":
        """Return a mixture with one more shift and the shares of least variance.

        Args:
            returned: noise that became a copy.
            weights: of that noise, by the mixtures that it was drawn from.
        """
        if not len(returned):
            return self
        space, _ = torch.linalg.qr(self.shifts[1:].T)
        mean = (weights / weights.sum()) @ returned
        wider = _Proposal(torch.cat([self.shifts, (space @ (space.T @ mean))[None]]), self.shares)
        densities = wider.densities(returned)
        shares = torch.full((len(wider.shifts),), 1 / len(wider.shifts), dtype=torch.float64)
        for _ in range(100):  # a fixed point of the gradient: shares grow where the variance falls
            slope = ((weights / (densities @ shares).square())[:, None] * densities).sum(0)
            shares = shares * slope.sqrt()
            shares = shares / shares.sum()
        rest = shares[1:] / shares[1:].sum().clamp(min=1e-12)
        plain = max(LEAST_PLAIN, shares[0].item())
        return _Proposal(wider.shifts, torch.cat([shares.new_tensor([plain]), rest * (1 - plain)]))


def _too_wide(weights: Sequence[Tensor], draws: int, factor: float) -> bool:
    """Return whether the interval is wider than asked for; the first of the rounds of `weights` does not count."""
    if len(weights) < 2:
        return True
    found = _estimate(torch.cat(list(weights[1:])), draws, 0)
    return not found.measurable or found.high > found.rate * factor


def _estimate(weights: Float[Tensor, "returned"], draws: int, nfe: int) -> GenerationRate:
    """Estimate the rate from the weights of the draws that became a copy."""
    total, squares, returned = weights.sum().item(), weights.square().sum().item(), len(weights)
    effective = total**2 / squares if returned else 0.0
    if returned < FEWEST or effective < FEWEST:
        return GenerationRate(*(float("nan"),) * 3, draws, returned, effective, nfe)
    rate = total / draws
    error = (max(squares / draws - rate**2, 0.0) / draws) ** 0.5 / rate
    return GenerationRate(rate, rate * exp(-1.96 * error), rate * exp(1.96 * error), draws, returned, effective, nfe)
