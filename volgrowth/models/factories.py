"""Factories: a function of the user's own, named factory:module:function, that returns a Denoiser.

The digest of such a model covers the name of the factory, the source of its module, and every tensor that the denoiser
holds in float32 on the CPU.
"""

import hashlib
import inspect

import torch

from volgrowth.errors import ModelError
from volgrowth.models.locating import FACTORY
from volgrowth.models.user_code import at_line, import_function
from volgrowth.models.weight_digest import digest_weights
from volgrowth.numerics import Denoiser
from volgrowth.records import ModelInfo

_CALL = "function(device=torch.device, dtype=torch.dtype)"


def load_factory(name: str, precision: torch.dtype, states: torch.dtype, device: torch.device) -> Denoiser:
    """Call a factory and check the denoiser that it returns.

    Args:
        name: factory:module:function.
        precision: dtype of the network's numbers.
        states: dtype of states and sums.
        device: where the denoiser shall compute.

    Raises:
        ModelError: the factory cannot be imported, fails, or returns something else; the sentence names the line of
            the user's file.
    """
    function, _ = _factory(name)
    try:
        denoiser = function(device=device, dtype=precision)  # type: ignore[operator]
    except (Exception, SystemExit) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(" :.")
        raise ModelError(f"{name} failed with {said}{at_line(error)}; it is called as {_CALL}") from error
    if not isinstance(denoiser, Denoiser):
        what = "the class" if isinstance(denoiser, type) else "a"
        kind = denoiser.__name__ if isinstance(denoiser, type) else type(denoiser).__name__
        raise ModelError(
            f"{name} returned {what} {kind}: expected a volgrowth.Denoiser, such as vg.NetworkDenoiser(...)"
        )
    check_image_shape(denoiser, f"{name} returned")
    denoiser.device, denoiser.dtype = device, states
    denoiser.precision = precision
    return denoiser


def check_image_shape(denoiser: Denoiser, called: str) -> None:
    """Check that a denoiser is one of images, whose shape it tells.

    Args:
        denoiser: the denoiser; a list as its shape becomes a tuple.
        called: who gave the denoiser, such as "factory:mine:load returned"; the error begins with it.

    Raises:
        ModelError: it tells no shape, or one of something else.
    """
    shape = denoiser.image_shape
    if shape is not None and all(isinstance(n, int) for n in shape):
        denoiser.image_shape = tuple(shape)
        shape = denoiser.pixel_shape
    if shape is None or len(shape) != 3 or shape[0] not in (1, 3) or not all(isinstance(n, int) for n in shape):
        raise ModelError(f"{called} a denoiser of images of shape {shape}: expected (1 or 3, height, width)")


def inspect_factory(name: str, denoiser: Denoiser | None = None) -> ModelInfo:
    """Return what the manifest records about the model behind a factory.

    Args:
        name: factory:module:function.
        denoiser: what the factory has returned in float32 on the CPU; it is called if that is not given.

    Raises:
        ModelError: as `load_factory`; or the denoiser holds tensors without values, or with NaN or infinity.
    """
    if denoiser is None:
        denoiser = load_factory(name, torch.float32, torch.float32, torch.device("cpu"))
    _, source = _factory(name)
    from_source = hashlib.sha256(f"{name}\n{source}".encode())
    weights = digest_weights(denoiser, name)
    shape, latent = denoiser.pixel_shape, denoiser.image_shape
    assert shape is not None
    return ModelInfo(
        name=name,
        kind=denoiser.kind,
        image_shape=shape,
        hash="sha256:" + hashlib.sha256(from_source.digest() + weights.digest).hexdigest(),
        parameters=weights.numbers or None,
        latent_shape=None if latent == shape else latent,
        condition=denoiser.condition,
        has_null=denoiser.has_null,
        notes=(weights.note,) if weights.note else (),
        source_hash="sha256:" + from_source.hexdigest(),
    )


def _factory(name: str) -> tuple[object, str]:
    """Return the function behind factory:module:function, and the source of its module."""
    parts = name.removeprefix(FACTORY).split(":")
    if len(parts) != 2 or not all(parts):
        raise ModelError(f"model {name!r} is no factory: expected factory:module:function")
    function, module = import_function(parts[0], parts[1], ModelError, f"model {name!r}")
    try:
        return function, inspect.getsource(module)
    except (OSError, TypeError) as error:
        raise ModelError(
            f"model {name!r} cannot be imported from source ({error}): expected a Python file, which stands for the "
            f"code of the model in the manifest"
        ) from None
