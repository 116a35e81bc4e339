"""The order of a model's weights in memory, which convolutions take over for their activations.

Channels-last is what cuDNN recommends for convolutions on tensor cores. Some layers, group normalisation among them,
force the other order in some versions of torch (pytorch#111824), so that it may also be slower.
"""

from dataclasses import dataclass
from typing import Any

import torch

from volgrowth.models.weight_digest import named_tensors
from volgrowth.numerics import Denoiser

FASTER = 1.03
"""Channels-last is used if it is so many times as fast; else it would change the last bits of scores for nothing."""
BOUND, LOW_BOUND = 1e-3, 2e-2
"""How far its numbers may be from those of float32 with channels first, as a share of the largest number of a column,
and that where the network runs in a low precision."""


@dataclass(frozen=True)
class Layout:
    """The layout that was chosen: whether channels are last, None if nothing was chosen; and why, for people."""

    last: bool | None = None
    said: str | None = None


def convolution_weights(denoiser: Denoiser) -> list[torch.nn.Parameter]:
    """Return the weights (out, in, height, width) behind a denoiser: of its network, and of its autoencoder."""
    parts: list[Any] = [getattr(denoiser, "network", denoiser)]
    if codec := getattr(denoiser, "codec", None):
        parts.append(codec.vae)
    return [
        tensor
        for part in parts
        for _, tensor in named_tensors(part)
        if isinstance(tensor, torch.nn.Parameter) and tensor.ndim == 4
    ]


def put_channels(denoiser: Denoiser, last: bool) -> None:
    """Put the channels of the convolution weights behind a denoiser last in memory, or first."""
    layout = torch.channels_last if last else torch.contiguous_format
    for weights in convolution_weights(denoiser):
        weights.data = weights.data.contiguous(memory_format=layout)


def judge_layout(first: float, last: float, off: float, low: bool) -> Layout:
    """Choose between the two layouts.

    Args:
        first: seconds of a launch with channels first.
        last: the same with channels last.
        off: the largest difference of the numbers with channels last from those of float32 with channels first.
        low: whether the network runs in a low precision.
    """
    bound, speed = LOW_BOUND if low else BOUND, first / last
    measured = f"channels last are {speed:.2f} times as fast as first, and off by {off:.1e} of the numbers in float32"
    if speed < FASTER:
        return Layout(False, f"{measured}; {FASTER:g} times as fast would be worth it")
    if not off <= bound:
        return Layout(False, f"{measured}; {bound:g} is allowed")
    return Layout(True, measured)
