"""Diffusers folders: pipelines, and networks alone, from safetensors only.

Everything that can be refused is refused from the JSON files and the headers of the weights, before anything is loaded.
What a pipeline brings is found by its model_index.json; a network alone takes the rest (scheduler, autoencoder, text
encoders) from the pipeline it lies in, such as `unet_ema` beside `unet`, or from the `base` that the user names.
"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from volgrowth.errors import ModelError
from volgrowth.models.checkpoint_files import (
    DIFFUSERS_WEIGHTS,
    NETWORKS,
    Component,
    from_pretrained,
    model_digest,
    read_json,
)
from volgrowth.models.network import NetworkDenoiser
from volgrowth.models.pipelines.families import SD3, DiT, Flux, NetworkFamily, TextFamily, UNet2D, UNet2DCondition
from volgrowth.models.pipelines.latents import AUTOENCODER_KINDS, Latents, downsampling, load_autoencoder
from volgrowth.models.pipelines.lora import check_lora
from volgrowth.models.pipelines.schedulers import SchedulerConfig
from volgrowth.models.pipelines.text import OPTIONS, TextEncoders, quiet

PIPELINES = (
    "DDPMPipeline",
    "DDIMPipeline",
    "PNDMPipeline",
    "ScoreSdeVePipeline",
    "LDMPipeline",
    "DiTPipeline",
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusion3Pipeline",
    "FluxPipeline",
)
FAMILIES: dict[str, NetworkFamily] = {
    family.name: family for family in (UNet2D(), DiT(), UNet2DCondition(), SD3(), Flux())
}
AUTOENCODERS = ("vae", "vqvae")
LIBRARIES = ("diffusers", "transformers")
FACTORY_HINT = "for any other model write factory:module:function"


@dataclass(frozen=True)
class ModelOptions:
    """What a user says about a model beside its name.

    Attributes:
        base: folder of the pipeline that a network alone, or one with other weights, takes the rest from.
        lora: a safetensors file, or a folder with one, of low-rank weights on top.
        resolution: height and width of the images, for models of no fixed size.
    """

    base: Path | None = None
    lora: Path | None = None
    resolution: int | None = None


@dataclass(frozen=True)
class DiffusersFolder:
    """A checked model. `pipeline` is the folder with a model_index.json, None for a network without one."""

    network: Component
    scheduler: SchedulerConfig
    vae: Component | None
    pipeline: Path | None
    text: TextEncoders | None
    settings: ModelOptions = field(default_factory=ModelOptions)

    @property
    def family(self) -> NetworkFamily:
        """The network's class."""
        return FAMILIES[self.network.kind]

    @cached_property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images.

        Raises:
            ModelError: the configurations do not say it, or not in a way that fits.
        """
        config, where = self.network.config, self.network.folder / "config.json"
        factor = downsampling(self.vae) if self.vae else 1
        if self.settings.resolution:
            height = width = self.settings.resolution
        else:
            size = config.get("sample_size") or self._default_size()
            if not size:
                raise ModelError(
                    f"{where} has no sample_size: set it to the size of the training images, or give resolution "
                    f"(--set resolution=512)"
                )
            if not isinstance(size, int) and len(size) != 2:
                raise ModelError(f"{where} has sample_size {size}: expected one number, or height and width")
            height, width = (factor * n for n in ((size, size) if isinstance(size, int) else size))
        step = factor * self.family.patch(config)
        if height % step or width % step:
            raise ModelError(f"images of {height} x {width} pixels do not fit {where}: expected multiples of {step}")
        return self.vae.config.get("in_channels", 3) if self.vae else config["in_channels"], height, width

    @cached_property
    def state_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of what the network sees."""
        channels, height, width = self.image_shape
        if self.vae is None:
            return channels, height, width
        factor = downsampling(self.vae)
        return self.vae.config.get("latent_channels", 3), height // factor, width // factor

    def _default_size(self) -> int | None:
        """Flux's networks know no size; their pipeline makes images of 1024 x 1024."""
        return 1024 // downsampling(self.vae) if self.network.kind == "FluxTransformer2DModel" and self.vae else None

    @property
    def kind(self) -> str:
        """The network's class."""
        return self.network.kind

    @property
    def condition(self) -> str | None:
        """What the network is conditioned on."""
        return self.family.condition(self.network.config)

    @property
    def has_null(self) -> bool:
        """Whether the network knows what no condition is."""
        return self.family.has_null(self.network.config)

    @property
    def num_parameters(self) -> int:
        """Of the network, read from the headers of its weights."""
        return self.network.num_parameters

    @property
    def files(self) -> tuple[Path, ...]:
        """All that decides what the model computes, beside the configurations."""
        return (
            *self.network.weights,
            *(self.vae.weights if self.vae else ()),
            *(self.text.files if self.text else ()),
            *([self.settings.lora] if self.settings.lora else ()),
        )

    @property
    def digest(self) -> str:
        """sha256 over weights and configurations."""
        values: list[Any] = [self.network.config, self.scheduler.values]
        if self.vae:
            values.append(self.vae.config)
        if self.text:
            values.append(self.text.values)
        if self.settings.resolution:
            values.append(self.settings.resolution)
        return model_digest(values, self.files)

    def load(self, dtype: torch.dtype, precision: torch.dtype, device: torch.device) -> NetworkDenoiser:
        """Load the weights, frozen.

        Args:
            dtype: of states, the autoencoder and all sums.
            precision: of the network.
        """
        import diffusers

        config, family = self.network.config, self.family
        with quiet():  # of settings that training adds to a config.json, as EMAModel does
            network = from_pretrained(getattr(diffusers, self.network.kind), self.network)
        # diffusers' own `to` warns of a cast that is meant here
        torch.nn.Module.to(network, device, precision)
        if channels_last(family, device):
            torch.nn.Module.to(network, memory_format=torch.channels_last)  # type: ignore[call-overload]
        network.eval().requires_grad_(False)
        codec = None
        if self.vae:
            codec = Latents(load_autoencoder(self.vae, dtype, device), self.image_shape)
        _, height, width = self.state_shape
        denoiser = NetworkDenoiser(
            family.forward(network, config),
            self.scheduler.parameterization,
            self.state_shape,
            precision=precision,
            whole_labels=family.whole_labels(config),
            unit_range=family.unit_range(config),
            codec=codec,
            conditioner=family.conditioner(self, network, precision, device),
            sampling_levels=self.scheduler.sampling_levels(height * width // family.patch(config) ** 2),
        )
        denoiser.device, denoiser.dtype = device, dtype
        return denoiser


def channels_last(family: NetworkFamily, device: torch.device) -> bool:
    """Whether weights, and through them all results, have channels last.

    Convolutions on tensor cores want it: so says cuDNN, and it has not been measured here. On a CPU core it costs
    google/ddpm-cifar10-32's network 5% of a forward pass, and saves 9% of one with a backward pass: bits are not
    changed for so little.
    """
    return family.convolutional and device.type == "cuda"


def inspect_folder(folder: Path, settings: ModelOptions = ModelOptions()) -> DiffusersFolder:
    """Check a pipeline folder, or one that holds a network.

    Raises:
        ModelError: naming what is missing or not supported, and what would do.
    """
    network_folder = folder
    if (folder / "model_index.json").is_file():
        if settings.base:
            raise ModelError(
                f"base was given, and {folder} is a whole pipeline: leave it out, or name the network in it "
                f"(--set subfolder=unet)"
            )
        pipeline: Path | None = folder
        index = _checked_index(folder)
        network_folder = _component(folder, next(name for name in NETWORKS if name in index))
    elif (folder / "config.json").is_file():
        around = settings.base or folder.parent
        pipeline = around if (around / "model_index.json").is_file() else None
        index = _checked_index(pipeline) if pipeline else {}
    else:
        raise ModelError(
            f"{folder} is no diffusion model: it has neither model_index.json (a diffusers pipeline) nor config.json "
            f"(a diffusers network); save one with pipeline.save_pretrained(...)"
        )
    network = _checked_network(network_folder)
    text = _checked_text(network, pipeline, index)
    if settings.lora:
        if text is None:
            raise ModelError(f"{network_folder} holds {network.kind}, which takes no lora: expected none (--lora)")
        check_lora(settings.lora)
    scheduler = SchedulerConfig(_scheduler_file(network_folder, pipeline))
    vae = None
    if pipeline and (name := next((name for name in AUTOENCODERS if index.get(name)), None)):
        vae = Component.of(_component(pipeline, name), DIFFUSERS_WEIGHTS, AUTOENCODER_KINDS)
    model = DiffusersFolder(network, scheduler, vae, pipeline, text, settings)
    _check_fit(model)
    return model


def _checked_index(folder: Path) -> dict[str, Any]:
    """The components of a pipeline: name -> (library, class), without those that it leaves empty, and its class."""
    index = read_json(folder / "model_index.json")
    name = index.get("_class_name", "pipeline")
    parts = {key: value for key, value in index.items() if isinstance(value, list) and any(value)}
    own = next((key for key, value in parts.items() if value[0] not in LIBRARIES and key in _USED), None)
    if not isinstance(name, str) or own:
        raise ModelError(
            f"{folder} brings code of its own ({own or name[-1]}), which is not run: save it as one of diffusers' own "
            f"pipelines; {FACTORY_HINT}"
        )
    if name not in PIPELINES:
        raise ModelError(f"{folder} holds a {name}: expected one of {', '.join(PIPELINES)}; {FACTORY_HINT}")
    if not any(key in parts for key in NETWORKS):
        raise ModelError(f"{folder}/model_index.json names no unet and no transformer: save the pipeline again")
    return {**parts, "_class_name": name, **{key: index[key] for key in OPTIONS if key in index}}


_USED = frozenset((*NETWORKS, *AUTOENCODERS, "scheduler", "text_encoder", "text_encoder_2", "text_encoder_3"))


def _component(folder: Path, name: str) -> Path:
    """A pipeline's component: in its own subfolder, or, in old checkpoints, at the top."""
    return folder / name if (folder / name).is_dir() else folder


def _scheduler_file(network_folder: Path, pipeline: Path | None) -> Path:
    """With the network, below or beside it, or in the pipeline."""
    places = [network_folder, network_folder / "scheduler", network_folder.parent / "scheduler"]
    if pipeline:
        places.append(_component(pipeline, "scheduler"))
    found = next((place for place in places if (place / "scheduler_config.json").is_file()), None)
    if found is None:
        raise ModelError(
            f"no scheduler_config.json in {pipeline or network_folder}: expected the scheduler that the network was "
            f"trained with; save it there with scheduler.save_pretrained(...), or name its pipeline with base (--base)"
        )
    return found / "scheduler_config.json"


def _checked_network(folder: Path) -> Component:
    network = Component.of(folder, DIFFUSERS_WEIGHTS, FAMILIES)
    family = FAMILIES[network.kind]
    network.config.setdefault("in_channels", family.in_channels)
    family.check(network)
    return network


def _checked_text(network: Component, pipeline: Path | None, index: dict[str, Any]) -> TextEncoders | None:
    """What reads captions, for a network that takes them."""
    family = FAMILIES[network.kind]
    if not isinstance(family, TextFamily):
        return None
    expected = family.pipeline(network.config)
    if pipeline is None:
        raise ModelError(
            f"{network.folder} holds a {network.kind} alone, and no text encoders: name the {expected} that it "
            f"belongs to with base (--base)"
        )
    if index["_class_name"] != expected:
        raise ModelError(
            f"{pipeline} holds a {index['_class_name']}, and the network in {network.folder} belongs to a {expected}: "
            f"expected one of its kind (--base)"
        )
    return TextEncoders.of(pipeline, index)


def _check_fit(model: DiffusersFolder) -> None:
    """Whether network, scheduler and autoencoder belong together."""
    config, where = model.network.config, model.network.folder / "config.json"
    channels, outputs = config["in_channels"], config.get("out_channels") or config["in_channels"]
    states = model.family.channels(config)
    if outputs not in (channels, 2 * channels):
        raise ModelError(
            f"{where} has out_channels {outputs}: expected {channels}, or {2 * channels} whose second half is a "
            f"variance"
        )
    if model.vae is None and states not in (1, 3):
        raise ModelError(
            f"{where} has in_channels {channels}: expected 1 or 3, since images are gray or RGB, or a pipeline with "
            f"an autoencoder around it (--base); wrap a network on anything else with factory:module:function"
        )
    if model.state_shape[0] != states:
        raise ModelError(
            f"{where} has in_channels {channels}, and the autoencoder beside it makes {model.state_shape[0]}: they do "
            f"not belong together"
        )
    patch, table = model.family.patch(config), config.get("pos_embed_max_size")
    if table and max(model.state_shape[1:]) > patch * table:
        raise ModelError(
            f"{where} has positions for {table} x {table} tokens, and images of {model.image_shape[1]} x "
            f"{model.image_shape[2]} pixels need more: expected a smaller resolution (--set resolution=512)"
        )
    steps, labels = model.scheduler.num_steps, config.get("num_train_timesteps")
    if model.family.whole_labels(config) and (labels or 0) < steps:
        raise ModelError(
            f"{where} has learned embeddings of {labels} times: expected one for each of the {steps} steps of its "
            f"scheduler"
        )
    fourier = config.get("time_embedding_type") == "fourier"
    if fourier != (model.scheduler.name == "ScoreSdeVeScheduler"):
        raise ModelError(
            f"{where} {'has' if fourier else 'lacks'} the fourier time embedding that goes with a ScoreSdeVeScheduler, "
            f"and its scheduler is {model.scheduler.name}: expected both or neither; wrap others with "
            f"factory:module:function"
        )
