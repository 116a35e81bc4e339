r"""From noise to images and back: the probability flow in both directions, and stochastic relatives of its way down.

`encode` carries images up the flow, to more noise; `decode` and `ddim_sample` go down to images. With D = E[x_0 | y]
and e the expected noise at level t, a step of DDIM (arXiv 2010.02502, eq. 12) to the level s < t is

    y_s = D + sqrt(s^2 - v^2) e + v z,      v = eta s sqrt(t^2 - s^2) / t,      z ~ N(0, I)

in y = x / alpha, where eq. 16 of the paper loses its alphas. eta = 0 is the probability flow; eta = 1 draws y_s given
y_t and x_0 = D from its true distribution, which is ancestral (DDPM) sampling with the smaller of its two variances.
"""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from volgrowth.numerics.denoisers import Denoiser, Images
from volgrowth.numerics.schedules import Schedule, VESchedule
from volgrowth.numerics.solvers import Node, nodes
from volgrowth.numerics.traces import carry


def ddim_sample(
    denoiser: Denoiser, noise: Images, times: Tensor, eta: float = 0.0, generator: torch.Generator | None = None
) -> Images:
    """Images reached from x = `noise` at the last of the increasing `times`, as a model's own DDIM sampler does it.

    Args:
        denoiser: a model with a schedule, whose native times these are.
        noise: (B, *image) standard normal.
        times: (nodes,) the last step ends in the denoised image at the first of them.
        eta: 0 for the probability flow, 1 for ancestral sampling, between them a mixture.
        generator: for the noise of the steps; on the CPU, so that every device draws the same.
    """
    schedule = denoiser.schedule
    if not isinstance(schedule, Schedule):
        raise ValueError("the denoiser has no schedule: expected a model with native times to sample with")
    alpha, sigma = schedule(times.double())
    return decode(denoiser, noise / alpha[-1].item(), sigma / alpha, eta, generator)


@torch.no_grad()
def decode(
    denoiser: Denoiser,
    y: Images,
    noise_levels: Float[Tensor, "nodes"],
    eta: float = 0.0,
    generator: torch.Generator | None = None,
) -> Images:
    """Images reached from y at the last of the rising `noise_levels`, denoised at the first of them."""
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta}: expected 0, the probability flow, to 1, ancestral sampling")
    levels = noise_levels.flip(0)
    for t, s in pairwise(levels):
        fresh = (eta * s * (t**2 - s**2).sqrt() / t).item()
        kept = (s**2 - fresh**2).sqrt().item() if eta else s.item()
        y = y + (kept - t.item()) * denoiser.noise(y, t)
        if eta:
            y = y + fresh * torch.randn(y.shape, generator=generator, dtype=y.dtype).to(y)
    return denoiser(y, levels[-1])


@torch.no_grad()
def encode(denoiser: Denoiser, y: Images, noise_levels: Float[Tensor, "nodes"]) -> Images:
    """Images carried by the probability flow from the first to the last of the rising `noise_levels`, by multistep."""

    def noise(y: Images, node: Node) -> Images:
        return denoiser.noise(y, torch.tensor(node.noise_level, dtype=torch.float64))

    return carry(noise, y, nodes(VESchedule(), noise_levels))
