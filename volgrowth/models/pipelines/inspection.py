"""Checks of diffusers folders: whole pipelines, and networks alone, from safetensors only.

Every unsupported model is refused from the JSON files and the headers of the weights, before anything is loaded.
model_index.json names the parts of a pipeline. A network alone takes the rest (scheduler, autoencoder, text encoders)
from the pipeline that its folder lies in, such as `unet_ema` beside `unet`, or from the `base` that the user names.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any

from volgrowth.errors import ModelError
from volgrowth.models.checkpoint_files import DIFFUSERS_WEIGHTS, NETWORKS, Component, class_name, read_json
from volgrowth.models.pipelines.families import FAMILIES, TextFamily
from volgrowth.models.pipelines.latents import AUTOENCODER_KINDS
from volgrowth.models.pipelines.lora import check_lora
from volgrowth.models.pipelines.model_folder import DiffusersFolder, ModelOptions
from volgrowth.models.pipelines.schedulers import SchedulerConfig
from volgrowth.models.pipelines.text import OPTIONS, TextEncoders
from volgrowth.models.recognition import is_training_state, no_model

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
AUTOENCODERS = ("vae", "vqvae")
LIBRARIES = ("diffusers", "transformers")
FACTORY_HINT = "for any other model write factory:module:function"
_AVERAGED = "a moving average of the weights, which diffusers' scripts draw their samples from"
_PLAIN = "the weights of that step"
_HINTS = {
    "ControlNetModel": "it only steers another network: audit that one",
    "AutoencoderKL": "it is an autoencoder: audit the pipeline around it",
    "StableDiffusionXLImg2ImgPipeline": "a refiner knows only the last steps: audit the base model that it refines",
}
_READ = frozenset((*NETWORKS, *AUTOENCODERS, "scheduler", "text_encoder", "text_encoder_2", "text_encoder_3"))
"""Parts of a pipeline that something is read from."""


def inspect_folder(folder: Path, options: ModelOptions) -> DiffusersFolder:
    """Check a folder that holds a pipeline or a network alone.

    Args:
        folder: a folder with model_index.json (a pipeline) or config.json (a network).
        options: the user's choices for this model.

    Raises:
        ModelError: something is missing or not supported; the sentence names it and the fix.
    """
    network_folder, pipeline, notes = _find_parts(folder, options)
    index = _checked_index(pipeline) if pipeline else {}
    network = _checked_network(network_folder or _component(folder, next(name for name in NETWORKS if name in index)))
    text = _checked_text(network, pipeline, index)
    if options.lora:
        if text is None:
            raise ModelError(f"{network.folder} holds {network.kind}, which takes no lora: expected none (--lora)")
        check_lora(options.lora)
    scheduler_file = _scheduler_file(network.folder, pipeline)
    scheduler = SchedulerConfig(scheduler_file)
    if network_folder and scheduler_file.parent.parent == network_folder.parents[1]:
        notes.append(f"the scheduler is that of {network_folder.parents[1]}, above {network_folder.name}")
    vae = None
    if pipeline and (name := next((name for name in AUTOENCODERS if index.get(name)), None)):
        vae = Component.of(_component(pipeline, name), DIFFUSERS_WEIGHTS, AUTOENCODER_KINDS)
    model = DiffusersFolder(network, scheduler, vae, pipeline, text, options, tuple(notes))
    check_fit(model)
    model.check_sizes()
    return model


def _find_parts(folder: Path, options: ModelOptions) -> tuple[Path | None, Path | None, list[str]]:
    """Return the folder of a network alone, that of the pipeline around it, and what the user must know about both.

    The network's folder is None if `folder` is a whole pipeline. One folder above a training state is looked at too,
    since training scripts write the pipeline there.
    """
    if (folder / "model_index.json").is_file():
        if options.base:
            raise ModelError(
                f"base was given, and {folder} is a whole pipeline: leave it out, or name the network in it "
                f"(--subfolder unet)"
            )
        others = [name for name in _network_folders(folder) if name not in NETWORKS]
        beside = f"beside the pipeline's network these were left aside: {', '.join(others)} (--subfolder takes one)"
        return None, folder, [beside] if others else []
    notes: list[str] = []
    if not (folder / "config.json").is_file():
        folder = folder / _only_network(folder)
        notes.append(f"{folder.parent} has no model_index.json: the network in its {folder.name} is measured")
    around = [folder.parent, *([folder.parents[1]] if is_training_state(folder.parent) else [])]
    places = [options.base] if options.base else around
    return folder, next((place for place in places if (place / "model_index.json").is_file()), None), notes


def _only_network(folder: Path) -> str:
    """Return the name of the one network in the folder of a training state.

    Raises:
        ModelError: there is none, or several.
    """
    names = _network_folders(folder)
    if not names:
        raise no_model(folder, str(folder))
    if len(names) > 1:
        ways = " or ".join(f"`volgrowth audit {folder} DATA --output OUT --subfolder {name}`" for name in names)
        kinds = " and ".join(f"{name} ({_AVERAGED if name.endswith('_ema') else _PLAIN})" for name in names)
        raise ModelError(f"{folder} holds several networks, {kinds}: choose one with {ways}")
    return names[0]


def _network_folders(folder: Path) -> list[str]:
    """Return the names of the folders in a folder that hold networks."""
    found = []
    for path in sorted(folder.glob("*/config.json")):
        with suppress(ModelError):
            if class_name(read_json(path)) in FAMILIES:
                found.append(path.parent.name)
    return found


def _checked_index(folder: Path) -> dict[str, Any]:
    """Return the class of a pipeline, its settings, and its parts as name -> (library, class) without empty ones."""
    index = read_json(folder / "model_index.json")
    name = index.get("_class_name", "pipeline")
    parts = {key: value for key, value in index.items() if isinstance(value, list) and any(value)}
    own = next((key for key, value in parts.items() if value[0] not in LIBRARIES and key in _READ), None)
    if not isinstance(name, str) or own:
        raise ModelError(
            f"{folder} brings code of its own ({own or name[-1]}), which is not run: save it as one of diffusers' own "
            f"pipelines; {FACTORY_HINT}"
        )
    if name not in PIPELINES:
        hint = f" ({_HINTS[name]})" if name in _HINTS else ""
        raise ModelError(f"{folder} holds a {name}{hint}: expected one of {', '.join(PIPELINES)}; {FACTORY_HINT}")
    if not any(key in parts for key in NETWORKS):
        raise ModelError(f"{folder}/model_index.json names no unet and no transformer: save the pipeline again")
    return {**parts, "_class_name": name, **{key: index[key] for key in OPTIONS if key in index}}


def _component(folder: Path, name: str) -> Path:
    """Return the folder of a pipeline's part: a subfolder, or, in old checkpoints, the pipeline folder itself."""
    return folder / name if (folder / name).is_dir() else folder


def _scheduler_file(network_folder: Path, pipeline: Path | None) -> Path:
    """Find scheduler_config.json: with the network, below it, beside it, or in the pipeline."""
    places = [network_folder, network_folder / "scheduler", network_folder.parent / "scheduler"]
    if is_training_state(network_folder.parent):
        places.append(network_folder.parents[1] / "scheduler")
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
    """Check the network's class and settings, and fill in the number of channels that old configurations omit."""
    network = Component.of(folder, DIFFUSERS_WEIGHTS, FAMILIES, _HINTS)
    family = FAMILIES[network.kind]
    network.config.setdefault("in_channels", family.in_channels)
    family.check(network)
    return network


def _checked_text(network: Component, pipeline: Path | None, index: dict[str, Any]) -> TextEncoders | None:
    """Check the text encoders; None for a network that takes no captions."""
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


def check_fit(model: DiffusersFolder) -> None:
    """Check that network, scheduler and autoencoder belong together.

    Raises:
        ModelError: they do not, or the images are of no size that the network takes.
    """
    config, where = model.network.config, model.network.folder / "config.json"
    channels, outputs = config["in_channels"], config.get("out_channels") or config["in_channels"]
    states = model.family.state_channels(config)
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
