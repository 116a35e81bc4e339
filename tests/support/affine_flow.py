"""The best affine denoiser of digits as a network of a flow: its error is orthogonal to what it is given."""

from collections.abc import Callable

import torch
from torch import Tensor

import volgrowth as vg
from volgrowth.demo.cases import digit_images

AFFINE = vg.LinearDenoiser(torch.from_numpy(digit_images()[:150] / 127.5 - 1))


def network(x: Tensor, t: Tensor) -> Tensor:
    time = t[0].double().cpu()
    return AFFINE.noise(x / (1 - time), time / (1 - time)) - AFFINE(x / (1 - time), time / (1 - time))


def load(device: str, dtype: str, label: Callable[[Tensor], Tensor] = lambda time: time) -> vg.NetworkDenoiser:
    wiring = vg.Scheduled(vg.FlowMatchingSchedule(), "flow_prediction", (0.01, 80.0), label)
    return vg.NetworkDenoiser(network, wiring, (1, 8, 8))


def turned(device: str, dtype: str) -> vg.NetworkDenoiser:
    """Time runs backwards."""
    return load(device, dtype, lambda time: 1 - time)
