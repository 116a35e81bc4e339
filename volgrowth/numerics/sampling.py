"""From noise to images: the probability flow run backwards, as a model's own DDIM sampler does it."""

from itertools import pairwise

import torch
from torch import Tensor

from volgrowth.numerics.denoisers import Denoiser, Images
from volgrowth.numerics.schedules import Schedule


@torch.no_grad()
def ddim_sample(denoiser: Denoiser, noise: Images, times: Tensor) -> Images:
    """Images that the flow reaches from x = `noise` at the last of the increasing `times` (arXiv 2010.02502, eq. 12).

    Args:
        denoiser: a model with a schedule, whose native times these are.
        noise: (B, *image) standard normal.
        times: (nodes,) the last step ends in the denoised image at the first of them.
    """
    schedule = denoiser.schedule
    if not isinstance(schedule, Schedule):
        raise ValueError("the denoiser has no schedule: expected a model with native times to sample with")
    alpha, sigma = schedule(times.double())
    levels = (sigma / alpha).flip(0)
    y = noise / alpha[-1].item()
    for t, s in pairwise(levels):
        y = y + (s - t).item() * denoiser.noise(y, t)
    return denoiser(y, levels[-1])
