"""What adapters of several libraries share: where a network is, and what its denoiser is told."""

from typing import Any

import torch

from volgrowth.errors import ModelError
from volgrowth.models.network import NetworkDenoiser
from volgrowth.models.parameterizations import Parameterization

ImageShape = tuple[int, int, int] | None
ValueRange = tuple[float, float] | None
RANGES = {(-1.0, 1.0): False, (0.0, 1.0): True}


class Module(torch.nn.Module):
    """A network behind a function that calls it as its library does.

    Args:
        inner: the network.
    """

    def __init__(self, inner: torch.nn.Module):
        super().__init__()
        self.inner = inner


def network_denoiser(
    network: torch.nn.Module,
    parameterization: Parameterization,
    image_shape: ImageShape,
    value_range: ValueRange,
    kind: str,
    **more: Any,
) -> NetworkDenoiser:
    """Return the denoiser of a network that lies where it lies, in `eval()`.

    Args:
        network: function (x, labels) -> output.
        parameterization: what its output means.
        image_shape: (channels, height, width) of the images.
        value_range: range of the pixels that it was trained on; None for (-1, 1).
        kind: the class that the user gave.
        **more: further arguments of `NetworkDenoiser`.

    Raises:
        ModelError: there is no shape, or the range is none that is known.
    """
    if image_shape is None:
        raise ModelError(
            f"a {kind} does not say the shape of its images: give image_shape=(channels, height, width), such as "
            f"vg.adapt(model, image_shape=(3, 32, 32))"
        )
    network.eval()
    device, precision = place_of(network)
    denoiser = NetworkDenoiser(
        network,
        parameterization,
        tuple(image_shape),
        precision=precision,
        unit_range=is_unit_range(value_range),
        **more,
    )
    denoiser.device, denoiser.dtype = device, torch.float64 if precision is torch.float64 else torch.float32
    denoiser.kind = kind  # type: ignore[misc]
    return denoiser


def place_of(network: torch.nn.Module) -> tuple[torch.device, torch.dtype]:
    """Return the device and the precision of a network, by its first floating-point weights; CPU and float32 of none.

    Raises:
        ModelError: its weights lie on several devices.
    """
    tensors = [tensor for tensor in (*network.parameters(), *network.buffers()) if tensor.is_floating_point()]
    if len(devices := {tensor.device for tensor in tensors}) > 1:
        raise ModelError(
            f"the network's weights lie on {' and '.join(sorted(map(str, devices)))}: move all of it to one device"
        )
    return (tensors[0].device, tensors[0].dtype) if tensors else (torch.device("cpu"), torch.float32)


def is_unit_range(value_range: ValueRange) -> bool:
    """Return True for pixels in [0, 1], False for pixels in [-1, 1], which None stands for.

    Raises:
        ModelError: it is another range.
    """
    if value_range is None:
        return False
    given = tuple(map(float, value_range))
    if given not in RANGES:
        raise ModelError(f"value_range {value_range}: expected (-1, 1) or (0, 1), the pixels that it was trained on")
    return RANGES[given]
