"""A diffusers model whose files were checked but not loaded yet, and how its parts become a denoiser."""

from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from volgrowth.errors import ModelError
from volgrowth.models.checkpoint_files import Component, from_pretrained, model_digest, read_json
from volgrowth.models.conditioning import ClassConditioner, Conditioner
from volgrowth.models.network import NetworkDenoiser
from volgrowth.models.pipelines.families import FAMILIES, NetworkFamily, TextFamily
from volgrowth.models.pipelines.latents import Latents, downsampling, images_at_once, load_autoencoder
from volgrowth.models.pipelines.library_classes import class_of_diffusers, pipeline_arguments
from volgrowth.models.pipelines.lora import add_lora
from volgrowth.models.pipelines.schedulers import SchedulerConfig
from volgrowth.models.pipelines.settings import OF_AVERAGES, arguments, unknown_settings
from volgrowth.models.pipelines.sizes import check_encoder_size, check_image_size, check_network_size
from volgrowth.models.pipelines.text import AT_ONCE, OPTIONS, TextConditioner, TextEncoders, quiet, readers
from volgrowth.records import ModelInfo


@dataclass(frozen=True)
class ModelOptions:
    """Options of a diffusers model that its own files do not decide.

    Attributes:
        base: folder of the pipeline that supplies what `unet` or `transformer` alone lacks: scheduler, autoencoder and
            text encoders.
        lora: a safetensors file of low-rank weights to add to the model.
        resolution: height and width of the images in pixels; None for the size that the model was trained on.
    """

    base: Path | None = None
    lora: Path | None = None
    resolution: int | None = None


@dataclass(frozen=True)
class DiffusersFolder:
    """A diffusers model that passed every check that needs no weights in memory.

    Attributes:
        network: the denoising network.
        scheduler: the noise schedule that the network was trained with.
        vae: the autoencoder; None if the network works on pixels.
        pipeline: the folder with model_index.json; None for a network without one.
        text: the text encoders; None for a network that takes no captions.
        options: what the user asked for.
        notes: sentences about how its parts were found.
    """

    network: Component
    scheduler: SchedulerConfig
    vae: Component | None
    pipeline: Path | None
    text: TextEncoders | None
    options: ModelOptions
    notes: tuple[str, ...] = ()

    @property
    def family(self) -> NetworkFamily:
        """The family of the network's class."""
        return FAMILIES[self.network.kind]

    @cached_property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images, in pixels.

        Raises:
            ModelError: the configuration has no size, or one that the network cannot take.
        """
        config, where = self.network.config, self.network.folder / "config.json"
        factor = downsampling(self.vae) if self.vae else 1
        if self.options.resolution:
            height = width = self.options.resolution
        else:
            size = config.get("sample_size") or self._default_size()
            if not size:
                raise ModelError(
                    f"{where} has no sample_size: set it to the size of the training images, or give resolution "
                    f"(--set resolution=512)"
                )
            sides = size if isinstance(size, list | tuple) else (size, size)
            if len(sides) != 2 or not all(isinstance(n, int) for n in sides):
                raise ModelError(f"{where} has sample_size {size!r}: expected one number, or height and width")
            height, width = (factor * n for n in sides)
        check_image_size(where, height, width)
        step = factor * self.family.patch(config)
        if height % step or width % step:
            raise ModelError(f"images of {height} x {width} pixels do not fit {where}: expected multiples of {step}")
        return self.vae.config.get("in_channels", 3) if self.vae else config["in_channels"], height, width

    @cached_property
    def state_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the states that the network denoises: latents, or the images themselves."""
        channels, height, width = self.image_shape
        if self.vae is None:
            return channels, height, width
        factor = downsampling(self.vae)
        return self.vae.config.get("latent_channels", 3), height // factor, width // factor

    def _default_size(self) -> int | None:
        """Return Flux's size in latents: its configurations omit it, and its pipeline makes images of 1024 x 1024."""
        return 1024 // downsampling(self.vae) if self.network.kind == "FluxTransformer2DModel" and self.vae else None

    def info(self, name: str) -> ModelInfo:
        """Return what the manifest records about the model that the user calls `name`.

        The hash covers the contents of all weights and tokenizers, and every setting that changes a result.
        """
        settings: list[Any] = [self.network.config, self.scheduler.values]
        if self.vae:
            settings.append(self.vae.config)
        if self.text:
            settings.append(self.text.values)
        if self.options.resolution:
            settings.append(self.options.resolution)
        files = (
            *self.network.weights,
            *(self.vae.weights if self.vae else ()),
            *(self.text.files if self.text else ()),
            *([self.options.lora] if self.options.lora else ()),
        )
        return ModelInfo(
            name=name,
            kind=self.network.kind,
            image_shape=self.image_shape,
            hash=model_digest(settings, files),
            parameters=self.network.num_parameters,
            latent_shape=None if self.state_shape == self.image_shape else self.state_shape,
            condition=self.family.condition(self.network.config),
            has_null=self.family.has_null(self.network.config),
            unknown_settings=tuple(self._unknown_settings()),
            notes=(*self.notes, *(note for part in self._modules for note in part.notes())),
        )

    @property
    def _modules(self) -> tuple[Component, ...]:
        """The network, and the autoencoder if there is one."""
        return (self.network, self.vae) if self.vae else (self.network,)

    def check_sizes(self) -> None:
        """Check that the sizes in all configurations are those of their weights, and that of the images a usual one.

        Raises:
            ModelError: they are not.
        """
        for part in self._modules:
            check_network_size(part, class_of_diffusers(part.kind))
        for _, encoder in self.text.encoders.values() if self.text else ():
            check_encoder_size(encoder)

    def _unknown_settings(self) -> list[str]:
        """Return the entries of all configurations that nothing knows, as `FOLDER/FILE: KEY=VALUE`."""
        found = self.scheduler.unknown_settings()
        for part in self._modules:
            kinds = [class_of_diffusers(name) for name in {part.kind, str(part.config.get("_class_name"))}]
            known = arguments(*kinds) | {*OF_AVERAGES, "quantization_config"}
            found += unknown_settings(part.folder / "config.json", part.config, known)
        if self.pipeline:
            path = self.pipeline / "model_index.json"
            index = read_json(path)
            known = pipeline_arguments(index["_class_name"]) | set(OPTIONS)
            found += unknown_settings(path, index, known)
        return found

    def load(self, dtype: torch.dtype, precision: torch.dtype, device: torch.device) -> NetworkDenoiser:
        """Load the weights, frozen, and return the denoiser.

        Args:
            dtype: precision of states, the autoencoder and all sums: float32 or float64.
            precision: precision of the network and the text encoders.
            device: where everything is loaded to.

        Raises:
            ModelError: weights are damaged or do not belong together.
        """
        with quiet():  # diffusers warns of settings that training adds to config.json, as EMAModel does
            kind = class_of_diffusers(self.network.kind)
            network = from_pretrained(kind, self.network, low_cpu_mem_usage=True)
        # diffusers' own `to` warns of a cast that is meant here
        torch.nn.Module.to(network, device, precision)
        if channels_last(self.family, device):
            torch.nn.Module.to(network, memory_format=torch.channels_last)  # type: ignore[call-overload]
        vae = load_autoencoder(self.vae, dtype, device) if self.vae else None
        pipeline = None
        if self.text:
            pipeline = self.text.load(network, precision, device)
            if self.options.lora:
                add_lora(pipeline, self.options.lora)
        return self.denoiser(network, vae, pipeline, dtype, precision, device)

    def denoiser(
        self,
        network: Any,
        vae: Any,
        pipeline: Any,
        dtype: torch.dtype,
        precision: torch.dtype,
        device: torch.device,
    ) -> NetworkDenoiser:
        """Return the denoiser of parts that are loaded.

        Args:
            network: the network.
            vae: the autoencoder, in `dtype`; None if the network works on pixels.
            pipeline: what encodes captions; None for a network that takes none.
            dtype: precision of states, the autoencoder and all sums: float32 or float64.
            precision: precision of the network and the text encoders.
            device: where all of them are.

        Raises:
            ModelError: text encoders and network do not belong together.
        """
        config, family = self.network.config, self.family
        at_once = images_at_once(self.image_shape, device)
        _, height, width = self.state_shape
        denoiser = NetworkDenoiser(
            family.forward(network, config),
            self.scheduler.parameterization,
            self.state_shape,
            precision=precision,
            whole_labels=family.whole_labels(config),
            unit_range=family.unit_range(config),
            codec=None if vae is None else Latents(vae, self.image_shape, at_once),
            conditioner=self._conditioner(network, pipeline, device),
            sampling_levels=self.scheduler.sampling_levels(height * width // family.patch(config) ** 2),
        )
        denoiser.device, denoiser.dtype, denoiser.module = device, dtype, network
        return denoiser

    def _conditioner(self, network: Any, pipeline: Any, device: torch.device) -> Conditioner | None:
        """Return what turns conditions into arguments of the network; None for a network that takes none."""
        config, family = self.network.config, self.family
        if not isinstance(family, TextFamily):
            classes = family.num_classes(config)
            return ClassConditioner(classes, family.null_class(config), device) if classes else None
        embed = partial(family.embed, pipeline, config=config, pixels=self.image_shape[1:], device=device)
        at_once = AT_ONCE if device.type == "cuda" else 1
        conditioner = TextConditioner(embed, readers(pipeline, family.t5_tokens(config)), at_once)
        known, given = family.embedding_width(network), conditioner([None])["encoder_hidden_states"].shape[-1]
        if known != given:
            raise ModelError(
                f"the text encoders in {self.pipeline or 'the pipeline'} make embeddings of {given} numbers, and the "
                f"network in {self.network.folder} reads {known}: expected the pipeline that it was trained in (--base)"
            )
        return conditioner


def channels_last(family: NetworkFamily, device: torch.device) -> bool:
    """Return True if weights, and through them all activations, should have channels last in memory.

    cuDNN recommends that order for convolutions on tensor cores; a new audit on a GPU measures it on the network itself
    (`volgrowth.audit.scoring.pilot`). On a CPU core it costs google/ddpm-cifar10-32's network 5% of a forward pass, and
    saves 9% of one with a backward pass, too little to change the last bits of scores for.
    """
    return family.convolutional and device.type == "cuda"
