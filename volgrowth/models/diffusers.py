"""Diffusers folders: an unconditional UNet2DModel with a DDPM or DDIM scheduler, from safetensors only.

Everything that can be refused is refused from the JSON files and the headers of the weights, before anything is loaded.
"""

import hashlib
import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from volgrowth.errors import ModelError
from volgrowth.models.network import NetworkDenoiser
from volgrowth.numerics import DDPMSchedule

SCHEDULERS = ("DDPMScheduler", "DDIMScheduler")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")


@dataclass(frozen=True)
class DiffusersModel:
    """A checked folder: where the network and the scheduler are, and their configurations."""

    network_folder: Path
    scheduler_folder: Path
    network: dict[str, Any]
    scheduler: dict[str, Any]
    weights: tuple[Path, ...]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        size = self.network["sample_size"]
        height, width = (size, size) if isinstance(size, int) else size
        return self.network["in_channels"], height, width

    @property
    def num_parameters(self) -> int:
        """Read from the headers of the weights.

        Raises:
            ModelError: a file is damaged.
        """
        from safetensors import SafetensorError, safe_open

        total = 0
        for path in self.weights:
            try:
                with safe_open(path, framework="pt") as tensors:
                    total += sum(prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
            except SafetensorError as error:
                raise _unreadable(self.network_folder, error) from None
        return total

    @property
    def digest(self) -> str:
        """sha256 over weights and both configurations."""
        sha = hashlib.sha256(json.dumps([self.network, self.scheduler], sort_keys=True).encode())
        for path in self.weights:
            with path.open("rb") as file:
                sha.update(hashlib.file_digest(file, "sha256").digest())
        return "sha256:" + sha.hexdigest()

    def load(self, dtype: torch.dtype, device: torch.device) -> NetworkDenoiser:
        """Load the weights, frozen."""
        schedule = _schedule(self.scheduler, self.scheduler_folder)
        network = _load_network(self.network_folder)
        # diffusers' own `to` warns of a cast that is meant here
        torch.nn.Module.to(network, device, dtype)
        network.eval().requires_grad_(False)
        channels = self.network["in_channels"]
        denoiser = NetworkDenoiser(
            # networks that also predict a variance put it in channels of its own
            lambda x, labels: network(x, labels, return_dict=False)[0][:, :channels],
            schedule,
            self.scheduler.get("prediction_type", "epsilon"),
            self.image_shape,
            whole_labels=self.network.get("time_embedding_type") == "learned",
        )
        denoiser.device, denoiser.dtype = device, dtype
        return denoiser


def inspect_folder(folder: Path) -> DiffusersModel:
    """Check a pipeline folder, or one that holds a network with its scheduler beside it.

    Raises:
        ModelError: naming what is missing or not supported, and what would do.
    """
    if (folder / "model_index.json").is_file():
        index = _read_json(folder / "model_index.json")
        unet = index.get("unet")
        network_class = unet[1] if isinstance(unet, list) and len(unet) == 2 else None
        if network_class != "UNet2DModel" or "vae" in index or "vqvae" in index:
            raise ModelError(
                f"{folder} holds a {index.get('_class_name', 'pipeline')}, not an unconditional pixel-space pipeline: "
                f"expected a DDPMPipeline or DDIMPipeline whose 'unet' is a UNet2DModel; for any other model write "
                f"factory:module:function"
            )
        network_folder, scheduler_folder = _component(folder, "unet"), _component(folder, "scheduler")
    elif (folder / "config.json").is_file():
        network_folder = folder
        places = (folder, folder / "scheduler", folder.parent / "scheduler")
        scheduler_folder = next((p for p in places if (p / "scheduler_config.json").is_file()), folder)
    else:
        raise ModelError(
            f"{folder} is no diffusion model: it has neither model_index.json (a diffusers pipeline) nor config.json "
            f"(a diffusers network); save one with pipeline.save_pretrained(...)"
        )
    network, scheduler = _checked_network(network_folder), _checked_scheduler(scheduler_folder)
    labels, steps = network.get("num_train_timesteps"), scheduler.get("num_train_timesteps", 1000)
    if network.get("time_embedding_type") == "learned" and (labels or 0) < steps:
        raise ModelError(
            f"{network_folder}/config.json has learned embeddings of {labels} times: expected one for each of the "
            f"{steps} steps of its scheduler"
        )
    return DiffusersModel(network_folder, scheduler_folder, network, scheduler, _weights(network_folder))


def _component(folder: Path, name: str) -> Path:
    """A pipeline's component: in its own subfolder, or, in old checkpoints, at the top."""
    return folder / name if (folder / name).is_dir() else folder


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON ({error}): download or save the model again") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no JSON object: download or save the model again")
    return content


def _checked_network(folder: Path) -> dict[str, Any]:
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} has no config.json: expected a diffusers UNet2DModel saved with save_pretrained(...)"
        )
    config = _read_json(folder / "config.json")
    kind = config.get("_class_name", "something without _class_name")
    if kind != "UNet2DModel":
        raise ModelError(
            f"{folder} is no diffusion model volgrowth knows: it holds {kind}, expected UNet2DModel; for any other "
            f"network write factory:module:function"
        )
    for key, expected in {
        "num_class_embeds": None,
        "class_embed_type": None,
        "center_input_sample": False,
    }.items():
        if config.get(key, expected) != expected:
            raise ModelError(
                f"{folder}/config.json sets {key} to {config[key]!r}: only unconditional networks on "
                f"images in [-1, 1] are supported; wrap this one with factory:module:function"
            )
    if config.get("time_embedding_type", "positional") == "fourier":
        raise ModelError(
            f"{folder}/config.json has a fourier time embedding, whose label is a noise level: expected "
            f"'positional' or 'learned'; wrap this one with factory:module:function"
        )
    _check_shapes(folder, config)
    return config


def _check_shapes(folder: Path, config: dict[str, Any]) -> None:
    size = config.get("sample_size")
    if not size:
        raise ModelError(f"{folder}/config.json has no sample_size: set it to the size of the training images")
    if not isinstance(size, int) and len(size) != 2:
        raise ModelError(f"{folder}/config.json has sample_size {size}: expected one number, or height and width")
    channels = config.setdefault("in_channels", 3)
    if channels not in (1, 3):
        raise ModelError(
            f"{folder}/config.json has in_channels {channels}: expected 1 or 3, since images are gray or RGB; wrap a "
            f"network on anything else with factory:module:function"
        )
    outputs = config.get("out_channels", 3)
    if outputs not in (channels, 2 * channels):
        raise ModelError(
            f"{folder}/config.json has out_channels {outputs}: expected {channels}, or {2 * channels} whose second "
            f"half is a variance"
        )


def _checked_scheduler(folder: Path) -> dict[str, Any]:
    path = folder / "scheduler_config.json"
    if not path.is_file():
        raise ModelError(
            f"no scheduler_config.json in {folder}: expected the DDPM or DDIM scheduler that the network was "
            f"trained with; save it there with scheduler.save_pretrained(...)"
        )
    config = _read_json(path)
    for key, default, known in (
        ("_class_name", "DDPMScheduler", SCHEDULERS),
        ("prediction_type", "epsilon", PREDICTION_TYPES),
        ("beta_schedule", "linear", BETA_SCHEDULES),
    ):
        if config.get(key, default) not in known:
            raise ModelError(f"{path} has {key} {config[key]!r}: expected one of {', '.join(known)}")
    return config


def _weights(folder: Path) -> tuple[Path, ...]:
    weights = tuple(sorted(folder.glob("diffusion_pytorch_model*.safetensors")))
    # variants (fp16, ema) lie beside the plain weights; `load` takes the plain ones
    plain = tuple(path for path in weights if path.name.count(".") == 1)
    if plain:
        return plain
    pickles = next(folder.glob("*.bin"), None)
    found = f"only the pickle {pickles.name}, which can run code when loaded" if pickles else "no weights"
    raise ModelError(
        f"{folder} has {found}: expected diffusion_pytorch_model.safetensors, as "
        f"save_pretrained(..., safe_serialization=True) writes it"
    )


def _load_network(folder: Path) -> torch.nn.Module:
    from diffusers import UNet2DModel

    try:
        network, loading = UNet2DModel.from_pretrained(
            folder,
            use_safetensors=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
            local_files_only=True,
        )
    except Exception as error:  # safetensors, torch and diffusers each raise their own kinds
        raise _unreadable(folder, error) from None
    for kind, problem in (
        ("missing_keys", "lack {} tensors of the network"),
        ("unexpected_keys", "hold {} tensors that the network has no place for"),
    ):
        if names := loading[kind]:
            raise ModelError(
                f"the weights in {folder} {problem.format(len(names))}, {names[0]} among them: they belong to "
                f"another config.json"
            )
    return network


def _unreadable(folder: Path, error: Exception) -> ModelError:
    first_line = (str(error).splitlines() or [type(error).__name__])[0].strip(" .")
    return ModelError(f"the weights in {folder} cannot be loaded ({first_line}): download or save them again")


def _schedule(config: dict[str, Any], folder: Path) -> DDPMSchedule:
    """The table of a scheduler's own betas, accumulated in float64."""
    import diffusers

    betas = getattr(diffusers, config.get("_class_name", "DDPMScheduler")).from_config(config).betas.double()
    table = torch.cumprod(1 - betas, 0)
    try:
        # a zero-terminal-SNR table ends in pure noise, where no noise level exists
        return DDPMSchedule(table[:-1] if table[-1] == 0 else table)
    except ValueError as error:
        raise ModelError(
            f"the betas of {folder / 'scheduler_config.json'} make no noise schedule ({error}): expected each of them "
            f"between 0 and 1"
        ) from None
