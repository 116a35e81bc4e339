"""Files of a model: JSON, safetensors, and what is said of those that cannot be read."""

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from volgrowth.errors import ModelError

# of networks and autoencoders (diffusers), and of text encoders (transformers)
DIFFUSERS_WEIGHTS = "diffusion_pytorch_model"
TRANSFORMERS_WEIGHTS = "model"

NETWORKS = ("unet", "transformer")
FOLDERS = (
    *("vae", "vqvae", "scheduler"),
    *(f"{part}{number}" for part in ("text_encoder", "tokenizer") for number in ("", "_2", "_3")),
)
"""Of a pipeline, the folders beside its network that something is read from."""
PATTERNS = (
    *("*.json", "*.txt", "*.model"),
    *(f"{stem}{part}.safetensors" for stem in (DIFFUSERS_WEIGHTS, TRANSFORMERS_WEIGHTS) for part in ("", "-*")),
)
"""Of a folder, the files that are downloaded: no pickles, no code, and of the weights no variants such as fp16."""


@dataclass(frozen=True)
class Component:
    """A folder with a configuration and weights, all of it checked but the tensors."""

    folder: Path
    config: dict[str, Any]
    weights: tuple[Path, ...]

    @classmethod
    def of(cls, folder: Path, stem: str, known: Collection[str] = ()) -> "Component":
        """Of a folder.

        Args:
            stem: what the names of its weights begin with.
            known: its class is one of these, if any are given.

        Raises:
            ModelError: a file is missing or cannot be read; the weights are pickles; another class.
        """
        if not (folder / "config.json").is_file():
            raise ModelError(f"{folder} has no config.json: expected what save_pretrained(...) writes")
        config = read_json(folder / "config.json")
        kind = config.get("_class_name", "something without _class_name")
        if known and kind not in known:
            raise ModelError(
                f"{folder} holds {kind}, which volgrowth does not know: expected one of {', '.join(known)}; for any "
                f"other model write factory:module:function"
            )
        return cls(folder, config, find_weights(folder, stem))

    @property
    def kind(self) -> str:
        """Name of its class."""
        return str(self.config.get("_class_name"))

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
                raise unreadable(self.folder, error) from None
        return total


def read_json(path: Path) -> dict[str, Any]:
    """An object from a JSON file.

    Raises:
        ModelError: there is none.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON ({error}): download or save the model again") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no JSON object: download or save the model again")
    return content


def wanted_folders(subfolder: str | None) -> list[str]:
    """Of a repository, the folders that something is read from for the model in it, or in a subfolder.

    A network in a subfolder takes the rest from the pipeline around it.
    """
    base = (subfolder or "").strip("/")
    inside = [f"{base}/{name}".strip("/") for name in ("", *NETWORKS, *FOLDERS)]
    around = [f"{base.rpartition('/')[0]}/{name}".strip("/") for name in ("", *FOLDERS)] if base else []
    return list(dict.fromkeys(inside + around))


def find_weights(folder: Path, stem: str) -> tuple[Path, ...]:
    """The safetensors of a folder: the plain ones, or the only variant (`fp16`, `ema`) that is there.

    Raises:
        ModelError: there are none, or several variants and no plain weights.
    """
    weights = tuple(sorted(folder.glob(f"{stem}*.safetensors")))
    variants = {path.name.split(".")[1].partition("-0")[0] if path.name.count(".") > 1 else "" for path in weights}
    if "" in variants:
        return tuple(path for path in weights if path.name.count(".") == 1)
    if len(variants) == 1:
        return weights
    if variants:
        names = ", ".join(sorted(variants))
        raise ModelError(
            f"{folder} has weights in variants only ({names}): expected {stem}.safetensors, or one variant"
        )
    pickles = next(folder.glob("*.bin"), None)
    found = f"only the pickle {pickles.name}, which can run code when loaded" if pickles else "no weights"
    raise ModelError(
        f"{folder} has {found}: expected {stem}.safetensors, as save_pretrained(..., safe_serialization=True) writes it"
    )


def variant_of(component: Component) -> str | None:
    """What `from_pretrained` has to be told of the weights that `find_weights` found."""
    name = component.weights[0].name
    return name.split(".")[1].partition("-0")[0] if name.count(".") > 1 else None


def model_digest(values: Any, files: tuple[Path, ...]) -> str:
    """sha256 over JSON values and the contents of files."""
    sha = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    for path in files:
        with path.open("rb") as file:
            sha.update(hashlib.file_digest(file, "sha256").digest())
    return "sha256:" + sha.hexdigest()


def unreadable(folder: Path, error: Exception) -> ModelError:
    """What is said of weights that a library cannot load."""
    first_line = (str(error).splitlines() or [type(error).__name__])[0].strip(" .")
    return ModelError(f"the weights in {folder} cannot be loaded ({first_line}): download or save them again")


def from_pretrained(kind: Any, component: Component) -> Any:
    """A diffusers module with its weights, which must be exactly those of its configuration.

    Raises:
        ModelError: they are not, or are damaged.
    """
    folder = component.folder
    try:
        network, loading = kind.from_pretrained(
            folder,
            variant=variant_of(component),
            use_safetensors=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
            local_files_only=True,
        )
    except Exception as error:  # safetensors, torch and diffusers each raise their own kinds
        raise unreadable(folder, error) from None
    for kinds, problem in (
        ("missing_keys", "lack {} tensors of the network"),
        ("unexpected_keys", "hold {} tensors that the network has no place for"),
    ):
        if names := loading[kinds]:
            raise ModelError(
                f"the weights in {folder} {problem.format(len(names))}, {names[0]} among them: they belong to "
                f"another config.json"
            )
    return network
