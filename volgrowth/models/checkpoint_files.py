"""Files of a checkpoint: which of them are used, how they are read, and errors for those that cannot be read."""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volgrowth.errors import ModelError, first_line
from volgrowth.models.recognition import refuse_pointer
from volgrowth.models.tensor_names import WRAPPERS, plain_name
from volgrowth.storage.file_digests import file_digest

if TYPE_CHECKING:
    import torch

# file names of weights: networks and autoencoders (diffusers), text encoders (transformers)
DIFFUSERS_WEIGHTS = "diffusion_pytorch_model"
TRANSFORMERS_WEIGHTS = "model"

OTHER_WEIGHTS = (".safetensors", ".bin", ".pt", ".ckpt", ".msgpack", ".h5")
LARGEST_JSON = 2**24
LARGEST_IMAGE = 16_384
"""Height and width of the largest images, in pixels; configurations that ask for more are taken for damaged."""

NETWORKS = ("unet", "transformer")
AVERAGES = ("unet_ema", "transformer_ema")
"""Folders of averaged weights, beside the network's in a training state."""
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
RENAMED = {("Transformer2DModel", "ada_norm_zero"): "DiTTransformer2DModel"}
"""Classes under their names in older checkpoints, DiT's among them, which also depend on `norm_type`."""


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
    def of(
        cls, folder: Path, stem: str, known: Collection[str] = (), hints: Mapping[str, str] | None = None
    ) -> "Component":
        """Check a folder and return it as a component.

        Args:
            folder: as save_pretrained writes it.
            stem: beginning of the weights' file names.
            known: classes that are supported; empty to allow any.
            hints: what to do instead with some classes that are not.

        Raises:
            ModelError: a file is missing or cannot be read, weights are pickles, or the class is not known.
        """
        if not (folder / "config.json").is_file():
            raise ModelError(f"{folder} has no config.json: expected what save_pretrained(...) writes")
        config = read_json(folder / "config.json")
        if config.get("quantization_config"):
            raise ModelError(
                f"{folder} holds quantised weights (config.json has quantization_config): expected plain ones, as "
                f"dequantize() and save_pretrained(...) write them"
            )
        kind = class_name(config) or "something without _class_name"
        if known and kind not in known:
            hint = f" ({hints[kind]})" if hints and kind in hints else ""
            raise ModelError(
                f"{folder} holds {kind}{hint}, which volgrowth does not know: expected one of {', '.join(known)}; for "
                f"any other model write factory:module:function"
            )
        return cls(folder, config, find_weights(folder, stem))

    @property
    def kind(self) -> str:
        """Class name that config.json gives, under today's name."""
        return str(class_name(self.config))

    @property
    def num_parameters(self) -> int:
        """Number of entries of all tensors."""
        return sum(map(prod, self.shapes().values()))

    @property
    def wrapped(self) -> bool:
        """True if the names of tensors are those of a network inside torch.compile or DistributedDataParallel."""
        return any(plain_name(name) != name for name in self._header())

    def notes(self) -> list[str]:
        """Return sentences about what lies beside the weights, and about their names."""
        names = {path.name for path in self.weights}
        begin = (DIFFUSERS_WEIGHTS, TRANSFORMERS_WEIGHTS, "pytorch_model")
        others = sorted(
            path.name
            for path in self.folder.iterdir()
            if path.name.startswith(begin) and path.name not in names and path.suffix in OTHER_WEIGHTS
        )
        said = [f"of the weights in {self.folder.name} these were left aside: {', '.join(others)}"] if others else []
        if self.wrapped:
            said.append(
                f"the tensors in {self.folder.name} carry the prefixes {' or '.join(f'{w}.' for w in WRAPPERS)} of "
                f"torch.compile or DistributedDataParallel, which were left out"
            )
        return said

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Read the shapes of all tensors, by the names of the network itself, from the headers of the weights.

        Raises:
            ModelError: a file is damaged.
        """
        return {plain_name(name): shape for name, shape in self._header().items()}

    def _header(self) -> dict[str, tuple[int, ...]]:
        """Read the shapes of all tensors, by their names in the files.

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


def class_name(config: dict[str, Any]) -> Any:
    """Return the class that a configuration names, under today's name if diffusers renamed it since."""
    given = config.get("_class_name")
    return RENAMED.get((given, str(config.get("norm_type"))), given) if isinstance(given, str) else given


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        ModelError: the file is missing, too large, is not JSON, or holds something other than an object.
    """
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError(f"it has {path.stat().st_size:,} bytes, and {LARGEST_JSON:,} are the most that is read")
        refuse_pointer(path)
        content = json.loads(path.read_text(), parse_constant=_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as JSON ({error}): download or save the model again") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no JSON object: download or save the model again")
    return content


def _constant(name: str) -> float:
    """Return an infinity, as diffusers writes some limits, and refuse NaN, which no setting means."""
    if name == "NaN":
        raise ValueError("it holds NaN where a number belongs")
    return float(name)


def wanted_folders(subfolder: str | None) -> list[str]:
    """Return the folders of a repository that the model in it needs, as paths without slashes at the ends.

    Args:
        subfolder: where in the repository the model lies. A network in a subfolder takes scheduler, autoencoder and
            text encoders from the pipeline around it, so folders beside it are needed too.
    """
    base = (subfolder or "").strip("/")
    inside = [f"{base}/{name}".strip("/") for name in ("", *NETWORKS, *AVERAGES, *FOLDERS)]
    around = list[str]()
    while base:
        base = base.rpartition("/")[0]
        around += [f"{base}/{name}".strip("/") for name in ("", *FOLDERS)]
    return list(dict.fromkeys(inside + around))


def find_weights(folder: Path, stem: str) -> tuple[Path, ...]:
    """Return the safetensors of a folder: the plain ones, or the only variant (`fp16`, `ema`) that is there.

    Raises:
        ModelError: there are none, several variants and no plain weights, pieces that belong together by no index, or
            pointers of git-lfs.
    """
    weights = tuple(sorted(folder.glob(f"{stem}*.safetensors")))
    variants = {_variant(path) or "" for path in weights}
    if "" in variants:
        weights = _plain_weights(folder, stem, tuple(path for path in weights if not _variant(path)))
    elif len(variants) > 1:
        names = ", ".join(sorted(variants))
        raise ModelError(
            f"{folder} has weights in variants only ({names}): expected {stem}.safetensors, or one variant"
        )
    if not weights:
        raise _no_weights(folder, stem)
    for path in weights:
        refuse_pointer(path)
    return weights


def _plain_weights(folder: Path, stem: str, found: tuple[Path, ...]) -> tuple[Path, ...]:
    """Return the files that hold the plain weights: one, or those that the index names."""
    whole, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if not index.is_file():
        return (whole,) if whole in found else found
    if whole in found:
        raise ModelError(
            f"{folder} has its weights twice, as {whole.name} and in the pieces of {index.name}: delete those that are "
            f"older"
        )
    places = read_json(index).get("weight_map")
    names = sorted(set(map(str, places.values()))) if isinstance(places, dict) else []
    lost = [name for name in names if folder / name not in found]
    if lost or not names:
        raise ModelError(
            f"{index} names {lost[0] if lost else 'no file'}, which is not beside it: download the weights again"
        )
    return tuple(folder / name for name in names)


def _no_weights(folder: Path, stem: str) -> ModelError:
    unfinished = next((path for place in (folder, folder.parent) for path in place.rglob("*.incomplete")), None)
    if unfinished:
        return ModelError(f"the download of the weights in {folder} was not finished ({unfinished.name}): repeat it")
    pickle = next(folder.glob("*.bin"), None)
    found = f"only the pickle {pickle.name}, which can run code when loaded" if pickle else "no weights"
    return ModelError(
        f"{folder} has {found}: expected {stem}.safetensors, as save_pretrained(..., safe_serialization=True) writes it"
    )


def _variant(path: Path) -> str | None:
    """Return the variant in a file name such as model.fp16-00001-of-00002.safetensors; None for plain weights."""
    return path.name.split(".")[1].partition("-0")[0] if path.name.count(".") > 1 else None


def model_digest(settings: Any, files: tuple[Path, ...]) -> str:
    """Return "sha256:..." over settings that JSON can hold and over the contents of files."""
    sha = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for path in files:
        sha.update(file_digest(path))
    return "sha256:" + sha.hexdigest()


def unreadable(folder: Path, error: Exception) -> ModelError:
    """Return the error for weights that a library cannot load."""
    return ModelError(f"the weights in {folder} cannot be loaded ({first_line(error)}): download or save them again")


def from_pretrained(
    kind: Any, component: Component, what: str = "network", leftovers: bool = False, **options: Any
) -> Any:
    """Load a module of diffusers or transformers with its weights, frozen.

    The module is built without memory for its weights, and these are pages of the file until they are cast or copied to
    a device. So a worker needs no more memory of its own than the weights take in its precision.

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
        if component.wrapped and hasattr(kind, "from_config"):
            module, missing, unexpected = _load_unwrapped(kind, component)
        else:
            module, loading = kind.from_pretrained(
                folder,
                variant=_variant(component.weights[0]),
                use_safetensors=True,
                output_loading_info=True,
                local_files_only=True,
                **options,
            )
            missing, unexpected = loading["missing_keys"], loading["unexpected_keys"]
    except Exception as error:  # safetensors, torch and the two libraries each raise their own kinds
        raise unreadable(folder, error) from None
    for names, problem in (
        (missing, f"lack {{}} tensors of the {what}"),
        ([] if leftovers else unexpected, f"hold {{}} tensors that the {what} has no place for"),
    ):
        if names:
            raise ModelError(
                f"the weights in {folder} {problem.format(len(names))}, {min(names)} among them: they belong to "
                f"another config.json"
            )
    check_weights_finite(folder, module)
    return module.eval().requires_grad_(False)


def _load_unwrapped(kind: Any, component: Component) -> tuple[Any, list[str], list[str]]:
    """Load weights that carry the prefixes of a wrapper; return the module, missing and unexpected names."""
    from accelerate import init_empty_weights  # type: ignore[import-untyped]
    from safetensors.torch import load_file

    with init_empty_weights():
        module = kind.from_config(component.config)
    tensors = {plain_name(name): tensor for path in component.weights for name, tensor in load_file(path).items()}
    missing, unexpected = module.load_state_dict(tensors, strict=False, assign=True)
    return module, missing, unexpected


def check_weights_finite(folder: Path, module: "torch.nn.Module") -> None:
    """Raise ModelError if a weight of a loaded module is NaN or infinite."""
    from volgrowth.models.weight_digest import is_finite  # loads torch

    bad = [name for name, tensor in module.named_parameters() if not is_finite(tensor)]
    if bad:
        raise ModelError(
            f"the weights in {folder} hold NaN or infinity in {len(bad)} tensors, {bad[0]} among them: take a "
            f"checkpoint from before the training diverged"
        )
