r"""A sampler that does not go all the way: the inertia update (arXiv 2505.02508).

The flow of a finite training set ends at one of its points. Stopped at a noise level s_b it is at a sample of the set
blurred by s_b, and one step along its last velocity, all the way to level 0, takes off the blur:

    x = y + s_b^2 score(y, s_b) = E[x_0 | y, s_b]

a mean of the training points within about s_b of y. On a manifold that is a point between its neighbours, at a
distance of the order of s_b^2 from the manifold: with a small s_b the sampler memorizes, with a large one it leaves
the manifold.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from volgrowth.numerics.denoisers import Denoiser, Images
from volgrowth.numerics.flow import decode


def stopped(noise_levels: Float[Tensor, "nodes"], stop: float) -> Float[Tensor, "nodes_above"]:
    """`stop` and those of the rising `noise_levels` that are above it: the grid of a sampler that stops there.

    Raises:
        ValueError: no level is above `stop`.
    """
    above = noise_levels[noise_levels > stop]
    if not len(above) or not stop > 0:
        raise ValueError(f"the sampler stops at {stop:g}: expected above 0 and below {noise_levels[-1].item():g}")
    return torch.cat([above.new_tensor([stop]), above])


def inertia_sample(
    denoiser: Denoiser,
    y: Images,
    noise_levels: Float[Tensor, "nodes"],
    stop: float,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
) -> Images:
    """Images reached from y at the last of the rising `noise_levels`, denoised in one step from the level `stop`.

    Args:
        stop: s_b, a noise level; below the first of `noise_levels` this is `decode` with one more step.
        eta, generator: as of `decode`.
    """
    return decode(denoiser, y, stopped(noise_levels, stop), eta, generator)


def memorized_share(samples: Images, training: Float[Tensor, "training *image"], radius: float) -> float:
    """Share of samples (B, *image) that lie within `radius` of a training image (n, *image)."""
    return float((_distances(samples, training).amin(1) <= radius).double().mean())


def memorized_ratio(samples: Images, training: Float[Tensor, "training *image"], ratio: float = 1 / 3) -> float:
    """Share of samples whose nearest training image is nearer than `ratio` times the second nearest."""
    nearest = _distances(samples, training).topk(2, dim=1, largest=False).values
    return float((nearest[:, 0] < ratio * nearest[:, 1]).double().mean())


def _distances(samples: Images, training: Float[Tensor, "training *image"]) -> Float[Tensor, "batch training"]:
    # the matrix product would lose the digits of distances that are small against the images
    return torch.cdist(samples.flatten(1), training.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
