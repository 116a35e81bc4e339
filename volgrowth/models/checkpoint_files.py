"""Files of a checkpoint: which of them are used, how they are read, and errors for those that cannot be read."""

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from volgrowth.errors import ModelError, first_line

# file names of weights: networks and autoencoders (diffusers), text encoders (transformers)
DIFFUSERS_WEIGHTS = "diffusion_pytorch_model"
TRANSFORMERS_WEIGHTS = "model"

NETWORKS = ("unet", "transformer")
FOLDERS = (
    *("vae", "vqvae", "scheduler"),
    *(f"{part}{number}" for part in ("text_encoder", "tokenizer") for number in ("", "_2", "_3")),
)
"""Subfolders of a pipeline that are read, beside the network's."""
PATTERNS = (
    *("*.json", "*.txt", "*.model"),
    *(f"{stem}{part}.safetensors" for stem in (DIFFUSERS_WEIGHTS, TRANSFORMERS_WEIGHTS) for part in ("", "-*")),
)
"""Names of the files that are downloaded from a folder: no pickles, no code, no variants such as fp16."""


@dataclass(frozen=True)
class Component:
    """A folder with config.json and safetensors weights, checked but for the tensors themselves.

    Attributes:
        folder: where the files are.
        config: the content of config.json.
        weights: paths of the safetensors files, sorted.
    """

    folder: Path
    config: dict[str, Any]
    weights: tuple[Path, ...]

    @classmethod
    def of(cls, folder: Path, stem: str, known: Collection[str] = ()) -> "Component":
        """Check a folder and return it as a component.

        Args:
            folder: as save_pretrained writes it.
            stem: beginning of the weights' file names.
            known: classes that are supported; empty to allow any.

        Raises:
            ModelError: a file is missing or cannot be read, weights are pickles, or the class is not known.
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
        """Class name that config.json gives."""
        return str(self.config.get("_class_name"))

    @property
    def num_parameters(self) -> int:
        """Number of entries of all tensors."""
        return sum(map(prod, self.shapes().values()))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Read the shapes of all tensors, by name, from the headers of the weights.

        Raises:
            ModelError: a file is damaged.
        """
        from safetensors import SafetensorError, safe_open

        found: dict[str, tuple[int, ...]] = {}
        for path in self.weights:
            try:
                with safe_open(path, framework="pt") as tensors:
                    found |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
            except SafetensorError as error:
                raise unreadable(self.folder, error) from None
        return found


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        ModelError: the file is missing, is not JSON, or holds something other than an object.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON ({error}): download or save the model again") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no JSON object: download or save the model again")
    return content


def wanted_folders(subfolder: str | None) -> list[str]:
    """Return the folders of a repository that the model in it needs, as paths without slashes at the ends.

    Args:
        subfolder: where in the repository the model lies. A network in a subfolder takes scheduler, autoencoder and
            text encoders from the pipeline around it, so folders beside it are needed too.
    """
    base = (subfolder or "").strip("/")
    inside = [f"{base}/{name}".strip("/") for name in ("", *NETWORKS, *FOLDERS)]
    around = [f"{base.rpartition('/')[0]}/{name}".strip("/") for name in ("", *FOLDERS)] if base else []
    return list(dict.fromkeys(inside + around))


def find_weights(folder: Path, stem: str) -> tuple[Path, ...]:
    """Return the safetensors of a folder: the plain ones, or the only variant (`fp16`, `ema`) that is there.

    Raises:
        ModelError: there are none, or several variants and no plain weights.
    """
    weights = tuple(sorted(folder.glob(f"{stem}*.safetensors")))
    variants = {_variant(path) or "" for path in weights}
    if "" in variants:
        return tuple(path for path in weights if not _variant(path))
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


def _variant(path: Path) -> str | None:
    """Return the variant in a file name such as model.fp16-00001-of-00002.safetensors; None for plain weights."""
    return path.name.split(".")[1].partition("-0")[0] if path.name.count(".") > 1 else None


def model_digest(settings: Any, files: tuple[Path, ...]) -> str:
    """Return "sha256:..." over settings that JSON can hold and over the contents of files."""
    sha = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for path in files:
        with path.open("rb") as file:
            sha.update(hashlib.file_digest(file, "sha256").digest())
    return "sha256:" + sha.hexdigest()


def unreadable(folder: Path, error: Exception) -> ModelError:
    """Return the error for weights that a library cannot load."""
    return ModelError(f"the weights in {folder} cannot be loaded ({first_line(error)}): download or save them again")


def from_pretrained(
    kind: Any, component: Component, what: str = "network", leftovers: bool = False, **options: Any
) -> Any:
    """Load a module of diffusers or transformers with its weights, frozen.

    Args:
        kind: the module's class.
        component: its folder.
        what: how errors call the module.
        leftovers: allow tensors that the module has no place for.
        options: further arguments of `kind.from_pretrained`.

    Raises:
        ModelError: weights are damaged, or their names are not those that the configuration asks for.
    """
    folder = component.folder
    try:
        module, loading = kind.from_pretrained(
            folder,
            variant=_variant(component.weights[0]),
            use_safetensors=True,
            output_loading_info=True,
            local_files_only=True,
            **options,
        )
    except Exception as error:  # safetensors, torch and the two libraries each raise their own kinds
        raise unreadable(folder, error) from None
    for names, problem in (
        (loading["missing_keys"], f"lack {{}} tensors of the {what}"),
        ([] if leftovers else loading["unexpected_keys"], f"hold {{}} tensors that the {what} has no place for"),
    ):
        if names:
            raise ModelError(
                f"the weights in {folder} {problem.format(len(names))}, {min(names)} among them: they belong to "
                f"another config.json"
            )
    return module.eval().requires_grad_(False)
