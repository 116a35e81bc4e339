r"""The probability flow in both directions, and stochastic samplers that go down with it.

`encode` carries images up the flow, to more noise; `decode` and `ddim_sample` go down from noise to images. With
D = E[x_0 | y] and e the expected noise at the noise level t, a step of DDIM (arXiv 2010.02502, eq. 12) to the level
s < t is

    y_s = D + sqrt(s^2 - v^2) e + v z,      v = eta s sqrt(t^2 - s^2) / t,      z ~ N(0, I)

in y-coordinates, where the alphas of the paper's eq. 16 cancel. eta = 0 is the probability flow. eta = 1 draws y_s from
its distribution given y_t and x_0 = D, which is ancestral (DDPM) sampling with the smaller of its two variances.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from volgrowth.numerics.denoisers import Denoiser, Images
from volgrowth.numerics.schedules import Schedule, VESchedule
from volgrowth.numerics.solvers import Multistep, Node, nodes


def ddim_sample(
    denoiser: Denoiser, noise: Images, times: Tensor, eta: float = 0.0, generator: torch.Generator | None = None
) -> Images:
    """Sample images as the model's own DDIM sampler does, from x-coordinates of its last time.

    Args:
        denoiser: a model with a schedule.
        noise: (B, *image) standard normal, taken as x at the last of the times.
        times: (nodes,) increasing native times of the model. The last step ends in the denoised image at the first.
        eta: 0 for the probability flow, 1 for ancestral sampling, or a mixture of both.
        generator: draws the noise of the steps, on the CPU so that every device draws the same.

    Returns:
        (B, *image), in the noise's dtype.

    Raises:
        ValueError: the denoiser has no schedule, or eta is not between 0 and 1.
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
    """Sample images by DDIM, from y-coordinates of the last noise level.

    Args:
        denoiser: the model.
        y: (B, *image), noisy states at the last noise level.
        noise_levels: (nodes,) rising. The states are denoised in one step at the first of them.
        eta: 0 for the probability flow, 1 for ancestral sampling, or a mixture of both.
        generator: draws the noise of the steps, on the CPU so that every device draws the same.

    Returns:
        (B, *image), in y's dtype.

    Raises:
        ValueError: eta is not between 0 and 1.
    """
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
    """Carry images along the probability flow, from the first to the last noise level, by the multistep solver.

    Args:
        denoiser: the model.
        y: (B, *image), y-coordinates of the first noise level.
        noise_levels: (nodes,) rising.

    Returns:
        (B, *image), y-coordinates of the last noise level, in y's dtype.

    Raises:
        ValueError: noise levels do not rise from above 0.
    """

    def noise(y: Images, node: Node) -> Images:
        return denoiser.noise(y, torch.tensor(node.noise_level, dtype=torch.float64))

    return carry(noise, y, nodes(VESchedule(), noise_levels))


def carry(noise: Callable[[Images, Node], Images], y: Images, grid: list[Node]) -> Images:
    """Carry images along the flow, from the first to the last node, by the multistep solver.

    Args:
        noise: function from images and a node to the expected noise, called once at each node but the last.
        y: (B, *image), y-coordinates of the first node.
        grid: nodes with rising or falling noise levels.

    Returns:
        (B, *image), y-coordinates of the last node.
    """
    solver, memory, stack = Multistep(), None, y[:, None]
    for t, s in pairwise(grid):
        stack, memory = solver.step(lambda points, node: noise(points[:, 0], node)[:, None], stack, t, s, memory)
    return stack[:, 0]
