r"""What forward passes tell without a derivative: loss and trace rate of a pair of noises, and the growth of one axis.

n(y) is the noise that the model expects at y, s the noise level, e a noise of the image's D dimensions.

**A pair of opposite noises.** The two answers at x + s e and x - s e are split into a part that is odd in e and one
that is even:

    odd = (n(x + s e) - n(x - s e)) / 2          even = (n(x + s e) + n(x - s e)) / 2

One noise has the loss |n(x + s e) - e|^2 = |odd - e|^2 + |even|^2 + 2 even . (odd - e). The last term changes its sign
with e: it is chance, of the first order in the noise, and the mean over the pair is without it,

    loss = (|odd - e|^2 + |even|^2) / D

**Trace rate.** Let |e| be fixed and its direction uniform. By the divergence theorem on the ball of radius s |e| around
the image,

    E[e . n(x + s e)] = s |e|^2 / D  mean of tr dn/dy over the ball

(with Gaussian e this is Stein's lemma, E[e . n(x + s e)] = s E[tr dn/dy]). The even part adds nothing but chance to
e . n, so that one pair estimates

    rate = D e . odd / |e|^2    of    s tr dn/dy = D - tr dE[x_0|y]/dy, averaged over the ball

which is the rate of `numerics.traces`, the number of collapsed directions, around the image in place of at it, with e
as the probe. An exact denoiser has 0 <= s dn/dy <= 1 in every direction, so that no pair has a rate above D, which is a
point mass's.

**Growth of one axis.** An Euler step of the flow dy/ds = n(y) from the level s to the level t takes a small
displacement u of length 1 to u + (t - s) dn/dy u. With the derivative as a difference over a radius r,

    growth = log |u + (t - s) (n(x + r u) - n(x)) / r|

in nats and y-coordinates: the growth of arXiv 2503.19429 with one axis, over one step. It is log(t / s) at a point
mass, and more than that is network error.
"""

from dataclasses import dataclass
from math import log

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from volgrowth.numerics.denoisers import Denoiser, Images

TOLERANCE = 1e-3
"""Share by which a rate or a growth may exceed that of a point mass: rounding must not mark one."""


@dataclass(frozen=True)
class NoisePair:
    """What a pair of opposite noises tells of B images.

    Attributes:
        loss: (B,) mean squared error of the predicted noise over pixels and both noises.
        rate: (B,) smoothed trace rate, in collapsed directions per e-fold of noise.
        above_ceiling: (B,) True if the rate is above the image's dimension, which is network error.
    """

    loss: Float[Tensor, "batch"]
    rate: Float[Tensor, "batch"]
    above_ceiling: Bool[Tensor, "batch"]


def noise_pair(denoiser: Denoiser, images: Images, noise_level: float, noise: Float[Tensor, "*image"]) -> NoisePair:
    """Evaluate a denoiser at images under a noise and its opposite, two forward passes.

    Args:
        denoiser: the model.
        images: (B, *image).
        noise_level: the level s.
        noise: e, the same for all images: then its errors are common to them and cancel when they are ranked.
    """
    level = torch.tensor(noise_level, dtype=torch.float64)
    there = denoiser.noise(images + noise_level * noise, level)
    back = denoiser.noise(images - noise_level * noise, level)
    odd, even = (there - back) / 2, (there + back) / 2
    dimension = noise.numel()
    rate = (odd * noise).flatten(1).sum(1) / noise.square().mean()
    loss = ((odd - noise).square() + even.square()).flatten(1).mean(1)
    return NoisePair(loss, rate, rate > dimension * (1 + TOLERANCE))


@dataclass(frozen=True)
class AxisGrowth:
    """Growth of one axis over one step, in y-coordinates.

    Attributes:
        growth: (B,) nats.
        above_ceiling: (B,) True if it is above that of a point mass, which is network error.
        sign_flip: (B,) True if the step reversed the axis.
    """

    growth: Float[Tensor, "batch"]
    above_ceiling: Bool[Tensor, "batch"]
    sign_flip: Bool[Tensor, "batch"]


def axis_growth(derivative: Images, axis: Float[Tensor, "*image"], start: float, end: float) -> AxisGrowth:
    """Return the growth of an axis over an Euler step.

    Args:
        derivative: dn/dy u at each image, (B, *image).
        axis: u, of length 1.
        start: the level s that the step begins at.
        end: the level t that it ends at.
    """
    moved = axis + (end - start) * derivative
    growth = moved.flatten(1).norm(dim=1).log()
    highest = log(end / start)
    return AxisGrowth(growth, growth > highest * (1 + TOLERANCE), (moved * axis).flatten(1).sum(1) < 0)
