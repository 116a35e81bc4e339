"""The weights behind a user's denoiser as one digest: every tensor that is reachable from it, by name.

A denoiser of the user's own may keep its network anywhere: as an attribute, in a list, in a closure, in a
`functools.partial`, as a global of its module. The search follows these, and modules of torch through their
parameters, buffers and whatever else they hold. Numpy arrays count as tensors. Plain Python numbers do not: the
digest of the factory's source covers those that are written down there.

The digest covers name, dtype, shape and bytes of each tensor. It does not depend on the order of attributes, nor on the
prefixes that torch.compile and DistributedDataParallel give to names.
"""

import functools
import hashlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from volgrowth.errors import ModelError
from volgrowth.models.tensor_names import plain_name

_PLAIN = (str, bytes, int, float, complex, bool, type(None), ModuleType, type, torch.dtype, torch.device)
_HOLDERS = (torch.nn.Module, Tensor, np.ndarray, list, tuple, dict)
_LIBRARIES = ("builtins", "torch", "volgrowth", "diffusers", "transformers")
_DEEPEST = 64

NOT_FOUND = (
    "no tensor was found behind the factory, so that its source code alone stands for the weights: a change of them "
    "will not be noticed"
)


@dataclass(frozen=True)
class WeightDigest:
    """What was found behind a denoiser.

    Attributes:
        digest: sha256 over all tensors; empty if there are none.
        numbers: how many numbers the tensors hold together; a tensor that is shared counts once.
        note: a sentence for the user if some tensors could not be covered; empty if all were.
    """

    digest: bytes
    numbers: int
    note: str


def digest_weights(denoiser: object, called: str) -> WeightDigest:
    """Compute the digest of all tensors that are reachable from a denoiser.

    Args:
        denoiser: the object to search.
        called: how the user knows the denoiser; errors begin with it.

    Raises:
        ModelError: a tensor has no values, or NaN or infinite ones.
    """
    lines, numbers, opaque = list[str](), 0, list[str]()
    done: dict[int, tuple[Tensor, bytes]] = {}  # the tensors too: an id is only theirs as long as they live
    for name, tensor in named_tensors(denoiser):
        _check_values(name, tensor, called)
        if id(tensor) not in done:
            content = _digest_tensor(tensor)
            opaque += [] if content else [name]
            done[id(tensor)] = tensor, content or b""
            numbers += tensor.numel()
        lines.append(f"{name} {tensor.dtype} {tuple(tensor.shape)} {done[id(tensor)][1].hex()}")
    if not lines:
        return WeightDigest(b"", 0, NOT_FOUND)
    note = ""
    if opaque:
        note = (
            f"{len(opaque)} tensors behind the factory ({opaque[0]} among them) keep their bytes where they cannot be "
            f"read: a change of them will not be noticed"
        )
    return WeightDigest(hashlib.sha256("\n".join(sorted(lines)).encode()).digest(), numbers, note)


def _check_values(name: str, tensor: Tensor, called: str) -> None:
    if is_lazy(tensor) or tensor.is_meta:
        raise ModelError(
            f"{called} returned a denoiser whose tensor {name} has no values yet (it is "
            f"{'lazy' if is_lazy(tensor) else 'on the meta device'}): load the weights in the factory"
        )
    if isinstance(tensor, torch.nn.Parameter) and not is_finite(tensor):  # a mask may hold -inf, weights may not
        raise ModelError(
            f"{called} returned a denoiser whose tensor {name} holds NaN or infinity: give a checkpoint from before "
            f"its training diverged"
        )


def is_finite(tensor: Tensor) -> bool:
    """Return False if an entry is NaN or infinite; kinds of tensors that cannot tell count as finite."""
    try:
        tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        return not tensor.numel() or all(bool(end.isfinite()) for end in torch.aminmax(tensor.detach()))
    except (RuntimeError, NotImplementedError):
        return True


def _digest_tensor(tensor: Tensor) -> bytes | None:
    """Return the sha256 of a tensor's bytes, and of what else its kind needs; None if the bytes cannot be had."""
    sha = hashlib.sha256()
    try:
        for part in _dense_parts(tensor.detach()):
            flat = part.to("cpu").contiguous().reshape(-1)
            sha.update(f"{flat.dtype} {flat.numel()}".encode())
            sha.update(flat.view(torch.uint8).numpy().data)
    except (RuntimeError, NotImplementedError, TypeError):  # kinds of tensors of other libraries
        return None
    return sha.digest()


def _dense_parts(tensor: Tensor) -> list[Tensor]:
    """Return the plain tensors that a tensor consists of: itself, unless it is quantised, sparse or a subclass."""
    if tensor.is_quantized:
        if tensor.qscheme() in (torch.per_channel_affine, torch.per_channel_affine_float_qparams):
            scales = [tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()]
        else:
            scales = [torch.tensor([tensor.q_scale(), tensor.q_zero_point()], dtype=torch.float64)]
        return [tensor.int_repr(), *scales]
    if tensor.layout is not torch.strided:
        tensor = tensor.to_sparse_coo().coalesce()
        return [tensor.indices(), tensor.values()]
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return [part for name in names for part in _dense_parts(getattr(tensor, name))]
    return [torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor.resolve_neg()]


def modules_behind(root: object) -> list[torch.nn.Module]:
    """Return every module of torch that is reachable from an object, each once."""
    return [value for _, value in _reachable(root) if isinstance(value, torch.nn.Module)]


def named_tensors(root: object) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor below an object with its path, each object once."""
    for path, value in _reachable(root):
        if isinstance(value, np.ndarray) and value.dtype.kind in "biufc" and value.dtype != np.longdouble:
            value = torch.from_numpy(np.array(value, value.dtype.newbyteorder("=")))
        if isinstance(value, Tensor):
            yield plain_name(path), value


def _reachable(root: object) -> Iterator[tuple[str, Any]]:
    """Yield an object and all that it holds, with their paths: objects once, tensors under each of their names."""
    seen: set[int] = set()
    keep: list[object] = []  # bound methods and lists made on the way, whose ids must not be given away again

    def search(value: Any, path: str, depth: int) -> Iterator[tuple[str, Any]]:
        if isinstance(value, Tensor | np.ndarray):
            yield path, value
        elif not isinstance(value, _PLAIN) and depth < _DEEPEST and id(value) not in seen:
            seen.add(id(value))
            keep.append(value)
            yield path, value
            for name, inner in _parts(value):
                yield from search(inner, f"{path}.{name}" if path else name, depth + 1)

    yield from search(root, "", 0)


def _parts(value: Any) -> list[tuple[str, Any]]:
    """Return what an object holds, by name."""
    if isinstance(value, torch.jit.ScriptModule):
        return [*value.named_parameters(), *value.named_buffers()]
    if isinstance(value, Mapping):
        return [
            (str(key) if isinstance(key, _PLAIN) else str(k), inner) for k, (key, inner) in enumerate(value.items())
        ]
    if isinstance(value, list | tuple):
        return [(str(k), inner) for k, inner in enumerate(value) if not isinstance(inner, _PLAIN)]
    if isinstance(value, functools.partial):
        return [("func", value.func), ("args", value.args), ("keywords", value.keywords)]
    if isinstance(value, MethodType):
        return [("self", value.__self__), ("function", value.__func__)]
    if isinstance(value, FunctionType):
        return _parts_of_function(value)
    if isinstance(value, BuiltinFunctionType):
        return []
    return _attributes(value) + _parts_of_class(type(value))


def _attributes(value: Any) -> list[tuple[str, Any]]:
    """Return the attributes of an object. Names that torch gives to groups of them are left out of paths."""
    found = list(getattr(value, "__dict__", {}).items())
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        names = (slots,) if isinstance(slots, str) else slots
        found += [(name, getattr(value, name)) for name in names if hasattr(value, name)]
    if isinstance(value, torch.nn.Module):
        groups = ("_parameters", "_buffers", "_modules")
        inside = [pair for name in groups for pair in getattr(value, name).items()]
        found = [*inside, *((name, inner) for name, inner in found if name not in groups)]
    return found


def _parts_of_function(function: FunctionType) -> list[tuple[str, Any]]:
    closed = inspect.getclosurevars(function).nonlocals if function.__closure__ else {}
    defaults = {f"default{k}": value for k, value in enumerate(function.__defaults__ or ())}
    return [*closed.items(), *defaults.items(), *(function.__kwdefaults__ or {}).items(), *_globals_of(function)]


def _globals_of(function: FunctionType) -> list[tuple[str, Any]]:
    """Return what a function names among its module's globals that is, or may hold, a network or tensors."""
    found = ((name, function.__globals__.get(name)) for name in function.__code__.co_names)
    return [(name, value) for name, value in found if isinstance(value, _HOLDERS)]


def _parts_of_class(kind: type) -> list[tuple[str, Any]]:
    """Return what a user's own class holds, and what its methods name; libraries keep no weights there."""
    found = []
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] in _LIBRARIES:
            continue
        for name, entry in vars(base).items():
            if isinstance(entry, _HOLDERS):
                found.append((name, entry))
            elif isinstance(entry, FunctionType):
                found += _globals_of(entry)
    return found
