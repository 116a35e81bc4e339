r"""Parts of the U-Nets of EDM: resampling convolutions, embeddings of the noise level, residual blocks with attention.

A change of resolution filters with K = k k^T / (sum k)^2, k = (1, 1) or (1, 3, 3, 1), so that constants pass
unchanged (arXiv 2011.13456, appendix H.1; the filter is that of arXiv 1912.04958):

    down    y = (K * x) at every second pixel
    up      y = 4 K * (x with a zero after every pixel, in both directions)

Modules compute and never train: dropout has no place here, and weights are empty until they are loaded. Their
parameters are named and shaped as in the state dicts of NVlabs' checkpoints.
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
    """A convolution that keeps the size, with or without a change of resolution.

    Args:
        inputs, outputs: channels.
        size: of the kernel, odd; 0 to change the resolution alone.
        resample: before the convolution.
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
        """(B, inputs, H, W) -> (B, outputs, H', W')."""
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
    """Of groups of four channels, or of more where there are over 128."""
    return nn.GroupNorm(min(MOST_GROUPS, channels // CHANNELS_OF_A_GROUP), channels, eps)


class PositionalEmbedding(nn.Module):
    """cos and sin of the label at frequencies from 1 down to 1e-4 (arXiv 1706.03762).

    Args:
        channels: of the embedding.
        endpoint: the lowest frequency is 1e-4 itself.
    """

    def __init__(self, channels: int, endpoint: bool):
        super().__init__()
        self.channels, self.endpoint = channels, endpoint

    def forward(self, labels: Tensor) -> Tensor:
        """(B,) -> (B, channels)."""
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
        """(B,) -> (B, channels)."""
        angles = labels.outer((2 * pi * self.get_buffer("freqs")).to(labels.dtype))
        return torch.cat([angles.cos(), angles.sin()], 1)


class Block(nn.Module):
    """A residual block (arXiv 2105.05233), conditioned on an embedding, with or without attention.

    Args:
        inputs, outputs: channels.
        embedding: channels of the embedding.
        heads: of attention; 0 for none.
        scaled: the embedding scales and shifts what is normalized; else it is added before.
        factor: of every sum with a shortcut.
        projected: a shortcut that changes the resolution has a 1 x 1 convolution.
        eps: of the group norms.
        resample, taps: as of `Conv`.

    Raises:
        ValueError: the channels make no groups, or no heads.
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
        """(B, inputs, H, W), (B, embedding) -> (B, outputs, H', W')."""
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
    """softmax(q k^T / sqrt(channels)) v over pixels: (B, heads * channels * 3, H, W) -> (B, heads * channels, H, W).

    The softmax is in float32 at least.
    """
    batch, _, height, width = qkv.shape
    q, k, v = qkv.reshape(batch * heads, -1, 3, height * width).unbind(2)
    wide = torch.promote_types(qkv.dtype, torch.float32)
    logits = torch.einsum("bcq,bck->bqk", q.to(wide), (k * q.shape[1] ** -0.5).to(wide))
    mixed = torch.einsum("bqk,bck->bcq", logits.softmax(2).to(v.dtype), v)
    return mixed.reshape(batch, -1, height, width)
