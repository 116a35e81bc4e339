"""NVlabs' pickles of EDM networks become safetensors, and none of the code in them runs.

Such a pickle is a dict whose entry `ema` is the network. Every module in it is a call of
`torch_utils.persistence._reconstruct_persistent_obj` on a dict of `class_name`, `state` and `module_src`, the source
of the Python module that defined the class, which NVlabs' own loader executes. Here the call makes a record of name
and state, and the source stays a string.

A pickle calls classes and functions by name. The table `_CALLABLES` lists the names that are allowed, each with a class
here that only holds data; any other name ends the reading.
"""

import io
import json
import pickle
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from volgrowth.errors import ModelError, first_line
from volgrowth.models.edm.model import STEM, inspect_edm
from volgrowth.models.edm.preconditioning import PRECONDITIONINGS
from volgrowth.storage.whole import publish_whole

# NVlabs' default networks, for pickles that omit them
_MODEL_TYPES = {"iDDPMPrecond": "DhariwalUNet", "EDMPrecond": "DhariwalUNet"}
_SIGMA_DATA = 0.5


def convert_pickle(pickle_path: Path, folder: Path, allow_pickle: bool) -> Path:
    """Write the network of an NVlabs pickle (its `ema`) as config.json and model.safetensors.

    Args:
        pickle_path: the pickle.
        folder: the folder to write, new or empty.
        allow_pickle: True if the user agreed that a pickle is read.

    Returns:
        The folder.

    Raises:
        ModelError: the pickle is not allowed, calls a name that no EDM network needs, or holds no network known here.
    """
    if not allow_pickle:
        raise ModelError(
            f"{pickle_path} is a pickle, which can run any code as you when it is opened: if you trust whom it comes "
            f"from, add --allow-pickle (volgrowth then reads its tensors and settings, and runs none of its code)"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ModelError(f"{folder} is not empty: name a new folder to write the network to")
    config, tensors = _read(pickle_path)
    try:
        _write(config, tensors, folder, f"the network of {pickle_path}")
    except OSError as error:
        raise ModelError(f"{folder} cannot be written ({error.strerror}): name a folder on a disk with room") from None
    return folder


def _write(config: dict[str, Any], tensors: dict[str, Tensor], folder: Path, what: str) -> None:
    """Write a folder beside the final one, check it and rename it, so that the final one is whole or missing."""
    with publish_whole(folder) as partial:
        partial.mkdir()
        save_file(tensors, partial / f"{STEM}.safetensors", metadata={"format": "pt"})
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        try:
            inspect_edm(partial)
        except ModelError as error:
            raise ModelError(str(error).replace(str(partial), what)) from None


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the settings for config.json and the state dict of a pickle."""
    try:
        with path.open("rb") as file:
            content = _Unpickler(file).load()
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}): check the path") from None
    except _RefusedError as error:
        raise ModelError(
            f"{path} asks for {error}, which no EDM network needs, so its reading ended there and nothing in it ran: "
            f"ask whom it comes from for safetensors"
        ) from None
    except Exception as error:  # a damaged stream can fail in the hands of any record
        raise ModelError(f"{path} cannot be read as a pickle ({first_line(error)}): download it again") from None
    network = content.get("ema") if isinstance(content, dict) else None
    if not isinstance(network, _Persistent):
        raise ModelError(f"{path} holds no network under 'ema': expected a pickle that NVlabs' EDM training wrote")
    if network.name not in PRECONDITIONINGS:
        raise ModelError(f"{path} holds a {network.name}: expected one of {', '.join(PRECONDITIONINGS)}")
    try:
        return _config(network), _state_dict(network)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"{path} holds a {network.name} unlike those of NVlabs' EDM training ({type(error).__name__}: {error}): "
            f"expected its arguments and modules"
        ) from None


def _config(network: "_Persistent") -> dict[str, Any]:
    """Return the arguments that the network was made with, and the defaults that config.json must state."""
    given = {name: value for name, value in network.state["_init_kwargs"].items() if not _is_infinite(value)}
    config = {"_class_name": network.name, "model_type": _MODEL_TYPES.get(network.name, "SongUNet"), **given}
    if network.name == "EDMPrecond":
        config.setdefault("sigma_data", _SIGMA_DATA)
    json.dumps(config)
    return config


def _is_infinite(value: Any) -> bool:
    """Return True for infinity, NVlabs' default of sigma_max, which JSON cannot express."""
    return isinstance(value, float) and not isfinite(value)


def _state_dict(module: "_Record", prefix: str = "") -> dict[str, Tensor]:
    """Return the tensors by name, as `torch.nn.Module.state_dict` does."""
    found = {}
    for kind in ("_parameters", "_buffers"):
        for name, tensor in module.state[kind].items():
            if tensor is not None:
                found[prefix + name] = tensor.value()
    for name, inner in module.state["_modules"].items():
        if inner is not None:
            found |= _state_dict(inner, f"{prefix}{name}.")
    return found


class _RefusedError(Exception):
    """The pickle calls a name that is not in the table."""


class _Unpickler(pickle.Unpickler):
    """A reader of pickles that makes records in place of the objects that are named."""

    def find_class(self, module: str, name: str) -> type:
        try:
            return _CALLABLES[module, name]
        except KeyError:
            raise _RefusedError(f"{module}.{name}") from None


class _Record:
    """An object whose state is kept and whose code is not."""

    def __init__(self, *_: Any):
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Persistent(_Record):
    """A module, a loss or a pipe of augmentations, as NVlabs pickles them."""

    def __init__(self, meta: dict[str, Any]):
        self.name, self.state = str(meta["class_name"]), meta["state"]


class _Dict(dict):
    """OrderedDict or EasyDict."""

    def __setstate__(self, _: Any) -> None:
        """Attributes of a dict carry nothing that is needed."""


class _Storage(_Record):
    """The memory of tensors: bytes that torch.save wrote, which torch reads without running anything."""

    def __init__(self, content: bytes):
        self.storage = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


class _Tensor(_Record):
    """A view of a storage; torch checks that it lies inside."""

    def __init__(self, storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any):
        memory = storage.storage
        self.view = torch.empty(0, dtype=memory.dtype).set_(memory).as_strided(size, stride, offset)

    def value(self) -> Tensor:
        return self.view.clone(memory_format=torch.contiguous_format)


class _Parameter(_Record):
    """A tensor that was trained."""

    def __init__(self, data: _Tensor, *_: Any):
        self.data = data

    def value(self) -> Tensor:
        return self.data.value()


class _Dtype(_Record):
    """A numpy dtype: a code such as f8, and the byte order in its state."""

    def __init__(self, code: str, *_: Any):
        self.code, self.order = code, "="

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]


class _Scalar(_Record):
    """A numpy scalar, which becomes a number of Python."""

    def __new__(cls, dtype: _Dtype, content: bytes) -> Any:
        order = "=" if dtype.order == "|" else dtype.order
        code = np.dtype(order + dtype.code)
        if code.kind not in "fiub":
            raise _RefusedError(f"a numpy scalar of type {dtype.code}")
        return np.frombuffer(content, code)[0].item()


_CALLABLES: dict[tuple[str, str], type] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _Persistent,
    ("dnnlib.util", "EasyDict"): _Dict,
    ("collections", "OrderedDict"): _Dict,
    ("builtins", "set"): _Record,
    ("torch.nn.modules.container", "ModuleDict"): _Record,
    ("torch.nn.modules.container", "ModuleList"): _Record,
    ("torch.storage", "_load_from_bytes"): _Storage,
    ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
    ("torch._utils", "_rebuild_parameter"): _Parameter,
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Record,
    **{(f"numpy.{core}.multiarray", "scalar"): _Scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Record for core in ("core", "_core")},
}
