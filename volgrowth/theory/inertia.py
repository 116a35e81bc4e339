r"""The inertia update: a sampler that stops early and takes one last step to noise level 0 (arXiv 2505.02508).

The probability flow of a finite training set ends at one of its points. Stopped at a noise level s_b, it has reached a
sample of the training set blurred by s_b. One step along the last velocity, all the way to level 0, removes the blur:

    x = y + s_b^2 score(y, s_b) = E[x_0 | y, s_b]

This is a mean of the training points within about s_b of y. For training points on a manifold the mean lies between
neighbours, at a distance of order s_b^2 from the manifold: with a small s_b the sampler memorizes, with a large one it
leaves the manifold.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from volgrowth.numerics.denoisers import Denoiser, Images
from volgrowth.numerics.flow import decode


def stopped(noise_levels: Float[Tensor, "nodes"], stop: float) -> Float[Tensor, "nodes_above"]:
    """Return the noise levels of a sampler that stops early: `stop` and the levels above it.

    Args:
        noise_levels: (nodes,) rising.
        stop: s_b, the level of the last step, above 0.

    Raises:
        ValueError: no level is above `stop`, or it is not above 0.
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
    """Sample images with the inertia update.

    Args:
        denoiser: the model.
        y: (B, *image), noisy states at the last noise level, y-coordinates.
        noise_levels: (nodes,) rising.
        stop: s_b, the noise level of the last step. Below the first noise level this is `decode` with one more step.
        eta, generator: those of `volgrowth.numerics.flow.decode`.

    Returns:
        (B, *image), in y's dtype.

    Raises:
        ValueError: no level is above `stop`, or eta is not between 0 and 1.
    """
    return decode(denoiser, y, stopped(noise_levels, stop), eta, generator)


def memorized_share(samples: Images, training: Float[Tensor, "training *image"], radius: float) -> float:
    """Return the share of samples (B, *image) within Euclidean distance `radius` of a training image (n, *image)."""
    return float((_distances(samples, training).amin(1) <= radius).double().mean())


def memorized_ratio(samples: Images, training: Float[Tensor, "training *image"], ratio: float = 1 / 3) -> float:
    """Return the share of samples whose nearest training image is nearer than `ratio` times the second nearest.

    The default ratio, a third, is that of arXiv 2310.02664.
    """
    nearest = _distances(samples, training).topk(2, dim=1, largest=False).values
    return float((nearest[:, 0] < ratio * nearest[:, 1]).double().mean())


def _distances(samples: Images, training: Float[Tensor, "training *image"]) -> Float[Tensor, "batch training"]:
    """Return Euclidean distances (B, n)."""
    # the matrix product would lose the digits of distances that are small against the images
    return torch.cdist(samples.flatten(1), training.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
