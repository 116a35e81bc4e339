r"""The U-Nets of NVlabs' EDM checkpoints: the same functions of the same named weights.

SongUNet is DDPM++ and NCSN++ (arXiv 2011.13456, appendix H), DhariwalUNet is ADM (arXiv 2105.05233). Table 7 of
arXiv 2206.00364 lists how they differ. In short:

                        DDPM++                NCSN++                        ADM
    embedding           positional            random frequencies            positional
    into a block        added                 added                         scale and shift
    resampling          (1, 1)                (1, 3, 3, 1)                  (1, 1)
    image pyramid       none                  residual, into the encoder    none
    shortcut            times sqrt(1/2)       times sqrt(1/2)               plain
    attention           1 head, in a level's  as DDPM++                     heads of 64 channels, in every
                        last decoder block                                  decoder block

The encoder has `num_blocks` blocks at each resolution, the decoder one more. Every state of the encoder is joined to
the input of one block of the decoder.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from math import sqrt
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from torch import Tensor, nn
from torch.nn.functional import silu

from volgrowth.models.edm.blocks import Block, Conv, FourierEmbedding, PositionalEmbedding, group_norm

CHANNELS_OF_A_HEAD = 64


class Architecture(BaseModel):
    """The network's entries of config.json, under NVlabs' names.

    `dropout` and `label_dropout` act in training only. A network knows images without a class if `label_dropout` > 0.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    augment_dim: int = Field(0, ge=0)
    model_channels: PositiveInt
    channel_mult: tuple[PositiveInt, ...] = Field(min_length=1)
    channel_mult_emb: PositiveInt = 4
    num_blocks: PositiveInt
    attn_resolutions: tuple[PositiveInt, ...]
    dropout: float = 0.1
    label_dropout: float = Field(0, ge=0, le=1)

    def network(self, resolution: int, inputs: int, outputs: int, label_dim: int) -> "UNet":
        """Return the network for square images, with empty weights."""
        raise NotImplementedError


class SongArchitecture(Architecture):
    """Settings of DDPM++ and NCSN++, with NVlabs' defaults."""

    model_channels: PositiveInt = 128
    channel_mult: tuple[PositiveInt, ...] = Field((1, 2, 2, 2), min_length=1)
    num_blocks: PositiveInt = 4
    attn_resolutions: tuple[PositiveInt, ...] = (16,)
    embedding_type: Literal["positional", "fourier"] = "positional"
    channel_mult_noise: PositiveInt = 1
    encoder_type: Literal["standard", "residual"] = "standard"
    decoder_type: Literal["standard", "skip"] = "standard"
    resample_filter: tuple[PositiveInt, ...] = Field((1, 1), min_length=1)

    def network(self, resolution: int, inputs: int, outputs: int, label_dim: int) -> "UNet":
        return SongUNet(self, resolution, inputs, outputs, label_dim)


class DhariwalArchitecture(Architecture):
    """Settings of ADM, with NVlabs' defaults."""

    model_channels: PositiveInt = 192
    channel_mult: tuple[PositiveInt, ...] = Field((1, 2, 3, 4), min_length=1)
    num_blocks: PositiveInt = 3
    attn_resolutions: tuple[PositiveInt, ...] = (32, 16, 8)

    def network(self, resolution: int, inputs: int, outputs: int, label_dim: int) -> "UNet":
        return DhariwalUNet(self, resolution, inputs, outputs, label_dim)


ARCHITECTURES: dict[str, type[Architecture]] = {"SongUNet": SongArchitecture, "DhariwalUNet": DhariwalArchitecture}


class UNet(nn.Module, ABC):
    """Encoder and decoder as both networks have them.

    Args:
        architecture: the network's settings.
        resolution: height and width of the images.
        inputs, outputs: channels of the images and of the output.

    Raises:
        ValueError: the resolution cannot be halved often enough, or channels are not divisible into groups or heads.
    """

    taps: Sequence[int] = (1, 1)
    residual = False

    def __init__(self, architecture: Architecture, resolution: int, inputs: int, outputs: int):
        super().__init__()
        self.num_blocks = architecture.num_blocks
        levels = len(architecture.channel_mult)
        if resolution % 2 ** (levels - 1):
            raise ValueError(f"img_resolution {resolution} cannot be halved {levels - 1} times")
        self.resolutions = [resolution >> level for level in range(levels)]
        self.widths = [architecture.model_channels * factor for factor in architecture.channel_mult]
        self.embedding_channels = architecture.model_channels * architecture.channel_mult_emb
        self.attended = frozenset(architecture.attn_resolutions)
        self.inputs, self.outputs = inputs, outputs
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()

    @abstractmethod
    def block(self, inputs: int, outputs: int, attends: bool = False, **resampling: Any) -> Block:
        """Return a block of this kind of network."""

    @abstractmethod
    def embed(self, labels: Tensor, class_labels: Tensor | None) -> Tensor:
        """Return the embeddings (B, embedding) of labels (B,) and classes (B, label_dim)."""

    @abstractmethod
    def decoder_attends(self, resolution: int, index: int) -> bool:
        """Return True if this block of the decoder has attention."""

    @abstractmethod
    def head(self, x: Tensor, output: Tensor | None, level: int) -> Tensor | None:
        """Return the output so far, after the last block of a level of the decoder."""

    def forward(self, x: Tensor, labels: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Evaluate the network.

        Args:
            x: (B, inputs, resolution, resolution).
            labels: (B,) label of the noise level, in any precision.
            class_labels: (B, label_dim) one-hot rows, or rows of zeros for no class; None for networks without classes.

        Returns:
            (B, outputs, resolution, resolution).
        """
        embedding = self.embed(labels, class_labels)
        return self.decode(self.encode(x, embedding), embedding)

    def encode(self, image: Tensor, embedding: Tensor) -> list[Tensor]:
        """Return every state of the encoder."""
        states: list[Tensor] = []
        for level, size in enumerate(self.resolutions):
            if level == 0:
                x = self.enc[f"{size}x{size}_conv"](image)
            else:
                x = self.enc[f"{size}x{size}_down"](states[-1], embedding)
                if self.residual:
                    x = image = (x + self.enc[f"{size}x{size}_aux_residual"](image)) / sqrt(2)
            states.append(x)
            for index in range(self.num_blocks):
                states.append(self.enc[f"{size}x{size}_block{index}"](states[-1], embedding))
        return states

    def decode(self, states: list[Tensor], embedding: Tensor) -> Tensor:
        """Return the output for the states of the encoder."""
        x, output, deepest = states[-1], None, len(self.resolutions) - 1
        for level in range(deepest, -1, -1):
            name = f"{self.resolutions[level]}x{self.resolutions[level]}"
            for first in ("in0", "in1") if level == deepest else ("up",):
                x = self.dec[f"{name}_{first}"](x, embedding)
            for index in range(self.num_blocks + 1):
                x = self.dec[f"{name}_block{index}"](torch.cat([x, states.pop()], 1), embedding)
            output = self.head(x, output, level)
        assert output is not None
        return output

    def build_encoder(self, first: int) -> list[int]:
        """Build the encoder, whose first state has `first` channels, and return the channels of every state."""
        states: list[int] = []
        shown = self.inputs
        for level, (size, width) in enumerate(zip(self.resolutions, self.widths, strict=True)):
            if level == 0:
                self.enc[f"{size}x{size}_conv"] = Conv(self.inputs, first, 3)
                states.append(first)
            else:
                last = states[-1]
                self.enc[f"{size}x{size}_down"] = self.block(last, last, resample="down", taps=self.taps)
                if self.residual:
                    self.enc[f"{size}x{size}_aux_residual"] = Conv(shown, last, 3, "down", self.taps, filter_last=True)
                    shown = last
                states.append(last)
            for index in range(self.num_blocks):
                self.enc[f"{size}x{size}_block{index}"] = self.block(states[-1], width, size in self.attended)
                states.append(width)
        return states

    def build_decoder(self, states: list[int]) -> None:
        """Build the decoder for an encoder whose states have these numbers of channels."""
        x, deepest = states[-1], len(self.resolutions) - 1
        for level in range(deepest, -1, -1):
            size, width = self.resolutions[level], self.widths[level]
            if level == deepest:
                self.dec[f"{size}x{size}_in0"] = self.block(x, x, True)
                self.dec[f"{size}x{size}_in1"] = self.block(x, x)
            else:
                self.dec[f"{size}x{size}_up"] = self.block(x, x, resample="up", taps=self.taps)
            for index in range(self.num_blocks + 1):
                attends = self.decoder_attends(size, index)
                self.dec[f"{size}x{size}_block{index}"] = self.block(x + states.pop(), width, attends)
                x = width


class SongUNet(UNet):
    """The network of DDPM++ and NCSN++."""

    def __init__(self, architecture: SongArchitecture, resolution: int, inputs: int, outputs: int, label_dim: int):
        super().__init__(architecture, resolution, inputs, outputs)
        self.taps = architecture.resample_filter
        self.residual = architecture.encoder_type == "residual"
        self.pyramid = architecture.decoder_type == "skip"
        noise = architecture.model_channels * architecture.channel_mult_noise
        positional = architecture.embedding_type == "positional"
        self.map_noise = PositionalEmbedding(noise, endpoint=True) if positional else FourierEmbedding(noise)
        self.map_label = nn.Linear(label_dim, noise) if label_dim else None
        self.map_augment = nn.Linear(architecture.augment_dim, noise, bias=False) if architecture.augment_dim else None
        self.map_layer0 = nn.Linear(noise, self.embedding_channels)
        self.map_layer1 = nn.Linear(self.embedding_channels, self.embedding_channels)
        self.build_decoder(self.build_encoder(architecture.model_channels))
        for level, (size, width) in enumerate(zip(self.resolutions, self.widths, strict=True)):
            if level and not self.pyramid:
                continue
            if self.pyramid and size != self.resolutions[-1]:
                self.dec[f"{size}x{size}_aux_up"] = Conv(outputs, outputs, 0, "up", self.taps)
            self.dec[f"{size}x{size}_aux_norm"] = group_norm(width, 1e-6)
            self.dec[f"{size}x{size}_aux_conv"] = Conv(width, outputs, 3)

    def block(self, inputs: int, outputs: int, attends: bool = False, **resampling: Any) -> Block:
        build = partial(Block, scaled=False, factor=sqrt(0.5), projected=True, eps=1e-6)
        return build(inputs, outputs, self.embedding_channels, heads=int(attends), **resampling)

    def decoder_attends(self, resolution: int, index: int) -> bool:
        return resolution in self.attended and index == self.num_blocks

    def embed(self, labels: Tensor, class_labels: Tensor | None) -> Tensor:
        cos, sin = self.map_noise(labels).chunk(2, 1)
        embedding = torch.cat([sin, cos], 1).to(self.map_layer0.weight)
        if self.map_label is not None:
            assert class_labels is not None
            # scaled to unit variance over classes
            embedding = embedding + self.map_label(class_labels.to(embedding) * sqrt(self.map_label.in_features))
        return silu(self.map_layer1(silu(self.map_layer0(embedding))))

    def head(self, x: Tensor, output: Tensor | None, level: int) -> Tensor | None:
        if level and not self.pyramid:
            return None
        name = f"{self.resolutions[level]}x{self.resolutions[level]}"
        found = self.dec[f"{name}_aux_conv"](silu(self.dec[f"{name}_aux_norm"](x)))
        return found if output is None else found + self.dec[f"{name}_aux_up"](output)


class DhariwalUNet(UNet):
    """The U-Net of ADM (Dhariwal and Nichol), as EDM uses it."""

    def __init__(self, architecture: DhariwalArchitecture, resolution: int, inputs: int, outputs: int, label_dim: int):
        super().__init__(architecture, resolution, inputs, outputs)
        noise = architecture.model_channels
        self.map_noise = PositionalEmbedding(noise, endpoint=False)
        self.map_augment = nn.Linear(architecture.augment_dim, noise, bias=False) if architecture.augment_dim else None
        self.map_layer0 = nn.Linear(noise, self.embedding_channels)
        self.map_layer1 = nn.Linear(self.embedding_channels, self.embedding_channels)
        self.map_label = nn.Linear(label_dim, self.embedding_channels, bias=False) if label_dim else None
        self.build_decoder(self.build_encoder(self.widths[0]))
        self.out_norm = group_norm(self.widths[0], 1e-5)
        self.out_conv = Conv(self.widths[0], outputs, 3)

    def block(self, inputs: int, outputs: int, attends: bool = False, **resampling: Any) -> Block:
        build = partial(Block, scaled=True, factor=1.0, projected=False, eps=1e-5)
        heads = outputs // CHANNELS_OF_A_HEAD if attends else 0
        return build(inputs, outputs, self.embedding_channels, heads=heads, **resampling)

    def decoder_attends(self, resolution: int, index: int) -> bool:
        return resolution in self.attended

    def embed(self, labels: Tensor, class_labels: Tensor | None) -> Tensor:
        embedding = self.map_noise(labels).to(self.map_layer0.weight)
        embedding = self.map_layer1(silu(self.map_layer0(embedding)))
        if self.map_label is not None:
            assert class_labels is not None
            embedding = embedding + self.map_label(class_labels.to(embedding))
        return silu(embedding)

    def head(self, x: Tensor, output: Tensor | None, level: int) -> Tensor | None:
        return None if level else self.out_conv(silu(self.out_norm(x)))
