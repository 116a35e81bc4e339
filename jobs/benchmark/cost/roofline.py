"""The least that a forward pass can cost: each of its operations at the device's limits, one after the other.

An operation takes the longer of two times: its floating-point operations at the rate of a large matrix product, and the
bytes of the tensors it reads and writes at the rate of a large copy. Data that is still in a cache costs less than
that, and fused operations share their bytes.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from volgrowth.numerics import Denoiser

aten = torch.ops.aten
FORMULAS = {
    **flop_registry,
    aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[aten._scaled_dot_product_flash_attention],
}


@dataclass(frozen=True)
class Limits:
    """A device's floating-point operations a second in a large matrix product, and bytes a second in a large copy."""

    flops: float
    bandwidth: float


@dataclass(frozen=True)
class Cost:
    """Operations, bytes, and seconds at the device's limits of one forward pass, for one image of a batch."""

    flops: float
    bytes: float
    seconds: float


class _Counting(TorchDispatchMode):
    def __init__(self, limits: Limits):
        super().__init__()
        self.limits, self.flops, self.bytes, self.seconds = limits, 0.0, 0.0, 0.0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = op(*args, **(kwargs or {}))
        if not op.is_view:
            formula = FORMULAS.get(op.overloadpacket)
            flops = formula(*args, **(kwargs or {}), out_val=result) if formula else 0
            moved = sum(_bytes(x) for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor))
            self.flops, self.bytes = self.flops + flops, self.bytes + moved
            self.seconds += max(flops / self.limits.flops, moved / self.limits.bandwidth)
        return result


def _bytes(x: Tensor) -> int:
    """Return the bytes of the tensor's entries; an entry that an expanded tensor repeats counts once."""
    return min(x.numel() * x.element_size(), x.untyped_storage().nbytes())


def forward_cost(denoiser: Denoiser, images: Tensor, limits: Limits) -> Cost:
    """Return the cost per image of a forward pass of images (B, *state) at one noise level."""
    with _Counting(limits) as counted, torch.no_grad():
        denoiser.noise(images, torch.tensor(0.2, dtype=torch.float64))
    return Cost(counted.flops / len(images), counted.bytes / len(images), counted.seconds / len(images))


def measure_limits(dtype: torch.dtype, device: torch.device) -> Limits:
    """Time a matrix product of 8192 x 8192 on a GPU, 2048 x 2048 on a CPU, and a copy of 1 GiB or 256 MiB."""
    gpu = device.type == "cuda"
    size, count = (8192, 2**30) if gpu else (2048, 2**28)
    a = torch.randn(size, size, device=device).to(dtype)
    source, target = (torch.zeros(count, dtype=torch.uint8, device=device) for _ in range(2))
    product, copy = least_seconds([lambda: a @ a, lambda: target.copy_(source)], device)
    return Limits(flops=2 * size**3 / product, bandwidth=2 * count / copy)


def least_seconds(works: Sequence[Callable[[], object]], device: torch.device, rounds: int = 3) -> list[float]:
    """Return the seconds of each work: the least of several rounds, after one that is not counted.

    The works take turns, so that a slow spell of the machine falls on all of them.
    """

    def once(work: Callable[[], object]) -> float:
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    for work in works:
        once(work)
    return [min(times) for times in zip(*([once(work) for work in works] for _ in range(rounds)), strict=True)]
