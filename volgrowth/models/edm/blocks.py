r"""Parts of EDM's U-Nets: resampling convolutions, embeddings of the noise level, residual blocks with attention.

A change of resolution filters with K = k k^T / (sum k)^2, where k = (1, 1) or (1, 3, 3, 1), so that constants pass
unchanged (arXiv 2011.13456, appendix H.1; the filter is that of arXiv 1912.04958):

    down    y = (K * x) at every second pixel
    up      y = 4 K * (x with a zero after every pixel, in both directions)

These modules are never trained here, so there is no dropout, and weights are empty until they are loaded. Parameters
have the names and shapes of the state dicts in NVlabs' checkpoints.
"""

from collections.abc import Sequence
from math import pi
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, silu

Resample = Literal["up", "down"]

CHANNELS_OF_A_GROUP, MOST_GROUPS = 4, 32


class Conv(nn.Module):
    """A convolution that keeps the size, with an optional change of resolution before it.

    Args:
        inputs, outputs: numbers of channels.
        size: side of the kernel, odd; 0 to change the resolution without a convolution.
        resample: `up` or `down`; None to keep the resolution.
        taps: k of the filter.
        filter_last: filter after the convolution, without a border of zeros between the two.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        resample: Resample | None = None,
        taps: Sequence[int] = (1, 1),
        filter_last: bool = False,
    ):
        super().__init__()
        self.resample, self.filter_last = resample, filter_last
        self.weight = nn.Parameter(torch.empty(outputs, inputs, size, size)) if size else None
        self.bias = nn.Parameter(torch.empty(outputs)) if size else None
        line = torch.tensor(taps, dtype=torch.float32)
        self.register_buffer("resample_filter", line.outer(line)[None, None] / line.sum() ** 2 if resample else None)
        self.border = (len(taps) - 1) // 2 if resample else 0
        self.padding = size // 2 + (self.border if filter_last else 0)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H', W')."""
        if self.resample and not self.filter_last:
            x = self._filtered(x, self.border)
        if self.weight is not None:
            x = conv2d(x, self.weight, self.bias, padding=self.padding)
        return self._filtered(x, 0) if self.filter_last else x

    def _filtered(self, x: Tensor, border: int) -> Tensor:
        channels, taps = x.shape[1], self.get_buffer("resample_filter")
        each = taps.expand(channels, 1, -1, -1)
        if self.resample == "up":
            return conv_transpose2d(x, 4 * each, stride=2, padding=border, groups=channels)
        return conv2d(x, each, stride=2, padding=border, groups=channels)


def group_norm(channels: int, eps: float) -> nn.GroupNorm:
    """Return a group norm of four channels a group, or more if there are over 128 channels."""
    return nn.GroupNorm(min(MOST_GROUPS, channels // CHANNELS_OF_A_GROUP), channels, eps)


class PositionalEmbedding(nn.Module):
    """cos and sin of the label at frequencies from 1 down to 1e-4 (arXiv 1706.03762).

    Args:
        channels: width of the embedding.
        endpoint: True if the lowest frequency is 1e-4 itself; False if it is one step above.
    """

    def __init__(self, channels: int, endpoint: bool):
        super().__init__()
        self.channels, self.endpoint = channels, endpoint

    def forward(self, labels: Tensor) -> Tensor:
        """Map labels (B,) to embeddings (B, channels)."""
        half = self.channels // 2
        # in float32 whatever the label's precision: these are the frequencies that the network was trained with
        steps = torch.arange(half, dtype=torch.float32, device=labels.device) / (half - self.endpoint)
        angles = labels.outer((1e-4**steps).to(labels.dtype))
        return torch.cat([angles.cos(), angles.sin()], 1)


class FourierEmbedding(nn.Module):
    """cos and sin of the label at random frequencies, which are part of the weights (arXiv 2006.10739)."""

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("freqs", torch.empty(channels // 2))

    def forward(self, labels: Tensor) -> Tensor:
        """Map labels (B,) to embeddings (B, channels)."""
        angles = labels.outer((2 * pi * self.get_buffer("freqs")).to(labels.dtype))
        return torch.cat([angles.cos(), angles.sin()], 1)


class Block(nn.Module):
    """A residual block (arXiv 2105.05233), conditioned on an embedding, with or without attention.

    Args:
        inputs, outputs: numbers of channels.
        embedding: width of the embedding.
        heads: heads of attention; 0 for no attention.
        scaled: True if the embedding scales and shifts the second norm's output, False if it is added to the input.
        factor: multiplies every sum with a shortcut.
        projected: True if a shortcut that changes only the resolution has a 1 x 1 convolution.
        eps: added to variances in group norms.
        resample, taps: those of `Conv`.

    Raises:
        ValueError: the channels are not divisible into groups or heads.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        *,
        heads: int = 0,
        scaled: bool,
        factor: float,
        projected: bool,
        eps: float,
        resample: Resample | None = None,
        taps: Sequence[int] = (1, 1),
    ):
        super().__init__()
        self.heads, self.scaled, self.factor = heads, scaled, factor
        self.norm0 = group_norm(inputs, eps)
        self.conv0 = Conv(inputs, outputs, 3, resample, taps)
        self.affine = nn.Linear(embedding, outputs * (2 if scaled else 1))
        self.norm1 = group_norm(outputs, eps)
        self.conv1 = Conv(outputs, outputs, 3)
        self.skip: Conv | None = None
        if inputs != outputs or resample:
            self.skip = Conv(inputs, outputs, 1 if projected or inputs != outputs else 0, resample, taps)
        if heads:
            if outputs % heads:
                raise ValueError(f"{outputs} channels are not divisible by {heads} heads of attention")
            self.norm2 = group_norm(outputs, eps)
            self.qkv = Conv(outputs, 3 * outputs, 1)
            self.proj = Conv(outputs, outputs, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map states (B, inputs, H, W) and embeddings (B, embedding) to (B, outputs, H', W')."""
        given = self.affine(embedding)[..., None, None]
        inner = self.conv0(silu(self.norm0(x)))
        if self.scaled:
            scale, shift = given.chunk(2, 1)
            inner = self.norm1(inner) * (1 + scale) + shift
        else:
            inner = self.norm1(inner + given)
        x = self.factor * (self.conv1(silu(inner)) + (self.skip(x) if self.skip else x))
        if self.heads:
            x = self.factor * (self.proj(attention(self.qkv(self.norm2(x)), self.heads)) + x)
        return x


def attention(qkv: Tensor, heads: int) -> Tensor:
    """Return softmax(q k^T / sqrt(channels)) v over pixels, with the softmax in float32 or more.

    Args:
        qkv: (B, heads * channels * 3, H, W).
        heads: number of heads.

    Returns:
        (B, heads * channels, H, W).
    """
    batch, _, height, width = qkv.shape
    q, k, v = qkv.reshape(batch * heads, -1, 3, height * width).unbind(2)
    wide = torch.promote_types(qkv.dtype, torch.float32)
    logits = torch.einsum("bcq,bck->bqk", q.to(wide), (k * q.shape[1] ** -0.5).to(wide))
    mixed = torch.einsum("bqk,bck->bcq", logits.softmax(2).to(v.dtype), v)
    return mixed.reshape(batch, -1, height, width)
