"""float64 on devices that have none: what must be summed in it goes to the CPU there."""

import torch
from torch import Tensor

WITHOUT_FLOAT64 = ("mps",)
"""Kinds of devices without float64: Apple's GPUs."""


def has_float64(device: torch.device | str) -> bool:
    """Say whether a device has float64."""
    return torch.device(device).type not in WITHOUT_FLOAT64


def in_float64(tensor: Tensor) -> Tensor:
    """Return a tensor in float64: on its own device, or on the CPU where that device has no float64."""
    return (tensor if has_float64(tensor.device) else tensor.cpu()).double()
