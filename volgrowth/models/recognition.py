"""What a folder or file is that cannot be audited as it stands, and what to do: one sentence for each kind.

Pickles are never opened. The strings in them are listed with `pickletools`, which runs nothing.
"""

import pickletools
import zipfile
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path

from volgrowth.errors import ModelError

LFS = b"version https://git-lfs"
STATES = ("random_states_*.pkl", "optimizer*.bin", "scheduler*.bin", "scaler.pt")
"""What accelerate's save_state writes beside the weights: nothing of it is a model."""

_FACTORY = (
    "build its network in a function of yours that reads it with torch.load(..., weights_only=True), and audit "
    "factory:module:function (docs/factory.md)"
)
_ADAPT = (
    "build its GaussianDiffusion in a function of yours that returns vg.adapt(diffusion, checkpoint='{}'), which reads "
    "its weights alone, and audit factory:module:function (docs/factory.md)"
)
_LORAS = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors", "pytorch_lora_weights.bin")
_EMBEDDINGS = ("learned_embeds.safetensors", "learned_embeds.bin", "learned_embeds-steps-*.safetensors")
_PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".tar")
_MOST_BYTES = 2**22
_SHOWN = 5

_LUCIDRAINS = "a checkpoint of lucidrains' denoising-diffusion-pytorch"
# strings that a trainer's checkpoints hold, and its name
_TRAINERS: tuple[tuple[frozenset[str], str], ...] = (
    (frozenset({"step", "model", "opt", "ema", "scaler"}), _LUCIDRAINS),
    (frozenset({"model", "model_ema", "opt", "epoch"}), "a checkpoint of k-diffusion"),
    (frozenset({"time_embed.0.weight", "out.2.weight"}), "weights in the names of OpenAI's guided-diffusion"),
    (frozenset({"conv_in.weight", "conv_out.weight"}), "weights in the names of diffusers"),
)


def is_training_state(folder: Path) -> bool:
    """Return True if accelerate's save_state wrote this folder, as diffusers' training scripts have it do."""
    return any(any(folder.glob(pattern)) for pattern in STATES)


def pickles(folder: Path) -> list[Path]:
    """Return the .pkl files of a folder that may hold a network."""
    return sorted(path for path in folder.glob("*.pkl") if not path.match(STATES[0]))


def refuse_pointer(path: Path) -> None:
    """Raise ModelError if a file is a pointer of git-lfs to content that was not fetched."""
    with path.open("rb") as file:
        if file.read(len(LFS)) == LFS:
            raise ModelError(
                f"{path} is a pointer of git-lfs and no content: run `git lfs pull` in {path.parent}, or download the "
                f"model again"
            )


def no_model(folder: Path, given: str) -> ModelError:
    """Return the error for a folder with neither model_index.json nor config.json.

    Args:
        folder: the folder.
        given: how the user may name it on the command line.
    """
    checkpoints = sorted(
        (path.name for path in folder.glob("checkpoint-*") if path.is_dir()), key=lambda name: (len(name), name)
    )
    if checkpoints:
        return ModelError(
            f"{folder} holds the checkpoints {_names(checkpoints)} of a training, and no pipeline beside them: name "
            f"one, as in `volgrowth audit {given}/{checkpoints[-1]} DATA --output OUT`"
        )
    if lora := _first(folder, _LORAS):
        return _is_lora(lora)
    if embedding := _first(folder, _EMBEDDINGS):
        return _is_embedding(embedding)
    if is_training_state(folder):
        return _state_without_network(folder)
    if unfinished := next(folder.rglob("*.incomplete"), None):
        return ModelError(f"the download of {folder} was not finished ({unfinished.name}): repeat it")
    files = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", *_PICKLES) and path.is_file())
    if files:
        return no_folder(files[0], str(files[0]))
    found = sorted(path.name for path in folder.iterdir())
    return ModelError(
        f"{folder} is no diffusion model: it has neither model_index.json (a diffusers pipeline) nor config.json "
        f"(a diffusers network), but {_names(found) if found else 'nothing'}; save one with "
        f"pipeline.save_pretrained(...)"
    )


def no_folder(path: Path, given: str) -> ModelError:
    """Return the error for a file where a folder was expected, or that lies alone in its folder.

    Args:
        path: the file.
        given: how the user names it.
    """
    try:
        refuse_pointer(path)
    except ModelError as error:
        return error
    folder = path.parent
    if any((folder / name).is_file() for name in ("config.json", "model_index.json")):
        return ModelError(f"{given} is a file: expected the diffusers folder it belongs to, {folder}")
    if path.suffix == ".safetensors":
        return _is_safetensors(path)
    if path.suffix in _PICKLES:
        return _is_pickle(path)
    return ModelError(f"{given} is a file: expected the diffusers folder it belongs to")


def _state_without_network(folder: Path) -> ModelError:
    weights = next((name for name in ("model.safetensors", "pytorch_model.bin") if (folder / name).is_file()), None)
    has = f"the weights {weights} without their configuration" if weights else "no weights"
    return ModelError(
        f"{folder} is a training state of accelerate with {has}: load it where it was trained and save the network "
        f"with unet.save_pretrained({str(folder / 'unet')!r}), and its scheduler with "
        f"scheduler.save_pretrained({str(folder / 'scheduler')!r})"
    )


def _is_safetensors(path: Path) -> ModelError:
    """Tell by the names in the header what a file of tensors is."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as tensors:
            names = list(tensors.keys())
    except (SafetensorError, OSError) as error:
        return ModelError(f"{path} cannot be read ({error}): download or save it again")
    if any("lora" in name for name in names):
        return _is_lora(path)
    if any(name.startswith("model.diffusion_model.") for name in names):
        return _is_single_file(path)
    if names == ["emb_params"] or all(name.startswith("<") for name in names):
        return _is_embedding(path)
    return ModelError(
        f"{path} holds tensors ({_names(names)}) and no configuration: expected the diffusers folder it belongs to, "
        f"with config.json; or build its network in a function of yours and audit factory:module:function"
    )


def _is_pickle(path: Path) -> ModelError:
    """Tell by the strings in a pickle what it is."""
    found = _strings(path)
    if any("torch_utils.persistence" in name for name in found):
        return ModelError(
            f"{path} is a pickle of NVlabs: convert it with `volgrowth convert {path} NEW_FOLDER --allow-pickle`"
        )
    if any(name.startswith("model.diffusion_model.") for name in found):
        return _is_single_file(path)
    kind = next((name for marks, name in _TRAINERS if marks <= found), "a pickle of torch")
    fix = _ADAPT.format(path) if kind == _LUCIDRAINS else _FACTORY
    return ModelError(f"{path} is {kind}, which can run code when it is opened, so volgrowth does not: {fix}")


def _is_single_file(path: Path) -> ModelError:
    return ModelError(
        f"{path} is a whole pipeline in one file, in the names of CompVis: turn it into a folder with "
        f"diffusers.StableDiffusionPipeline.from_single_file({str(path)!r}).save_pretrained(FOLDER) (or the pipeline "
        f"of its version), and audit FOLDER"
    )


def _is_lora(path: Path) -> ModelError:
    return ModelError(
        f"{path} holds low-rank weights (LoRA) alone: audit the pipeline that they were trained on, with "
        f"`volgrowth audit PIPELINE DATA --output OUT --lora {path}`"
    )


def _is_embedding(path: Path) -> ModelError:
    return ModelError(
        f"{path} holds the embeddings of a textual inversion alone, which change captions and no network: expected the "
        f"pipeline that they were trained on, without them"
    )


def _strings(path: Path) -> set[str]:
    """Return the strings at the beginning of a pickle, or of the pickle in torch's archive, without running it."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
                content = archive.open(name).read(_MOST_BYTES)
        else:
            with path.open("rb") as file:
                content = file.read(_MOST_BYTES)
    except (OSError, StopIteration, zipfile.BadZipFile, RuntimeError, NotImplementedError):
        return set()
    found, stream = set[str](), BytesIO(content)
    try:
        while stream.tell() < len(content):  # torch's old format is several pickles, one after the other
            found |= {arg for _, arg, _ in pickletools.genops(stream) if isinstance(arg, str)}
    except Exception:  # cut off, or not a pickle: each opcode fails in its own way
        return found
    return found


def _first(folder: Path, patterns: Iterable[str]) -> Path | None:
    return next((path for pattern in patterns for path in sorted(folder.glob(pattern))), None)


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
