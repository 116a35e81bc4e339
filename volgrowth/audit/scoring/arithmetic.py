"""The arithmetic that scores rest on, observed while a row is measured: precision, TF32, attention and memory layout.

What a setting asks for need not be what a device does: torch chooses the kernel of attention by shapes and precision,
and a factory may keep its network in any precision. So the operations themselves are watched, for one row.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from volgrowth.audit.scoring.derivatives import clamp_level, tf32_allowed
from volgrowth.audit.scoring.scorer import Prepared, Scorer

# a level in the middle of those that presets visit
LEVEL = 0.2
# torch's operations for attention by the name that people know; a softmax by itself is attention without such a kernel
ATTENTION = {
    "_scaled_dot_product_flash_attention": "flash",
    "_scaled_dot_product_flash_attention_for_cpu": "flash",
    "_scaled_dot_product_efficient_attention": "memory-efficient",
    "_scaled_dot_product_cudnn_attention": "cuDNN",
    "_softmax": "plain",
    "_safe_softmax": "plain",
}
# where each product of matrices has its first factor among its arguments
PRODUCTS = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}


class Watch(TorchDispatchMode):
    """Collects what the operations within this context are.

    Attributes:
        dtypes: precisions of products and convolutions.
        tf32: which of the two may be rounded to TF32, on a GPU.
        attention: kernels of attention.
        channels_last: whether each convolution's weights have their channels last in memory.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Say that torch's compiler need not be told to pass over this: no network is compiled here, and to import it
        takes half a second."""
        return False

    def __init__(self) -> None:
        super().__init__()
        self.dtypes, self.tf32, self.attention = set[str](), set[str](), set[str]()
        self.channels_last = set[bool]()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = op.overloadpacket.__name__
        if name in ATTENTION:
            self.attention.add(ATTENTION[name])
        if name == "convolution":
            self._product("convolutions", args[1])
            last, first = args[1].is_contiguous(memory_format=_layout(args[1])), args[1].is_contiguous()
            if last != first:  # a kernel of one pixel is both
                self.channels_last.add(last)
        elif name in PRODUCTS:
            self._product("products", args[PRODUCTS[name]])
        return op(*args, **(kwargs or {}))

    def _product(self, kind: str, factor: Tensor) -> None:
        self.dtypes.add(str(factor.dtype).removeprefix("torch."))
        if factor.is_cuda and factor.dtype is torch.float32 and tf32_allowed()[kind]:
            self.tf32.add(kind)


def _layout(weights: Tensor) -> torch.memory_format:
    return torch.channels_last_3d if weights.ndim == 5 else torch.channels_last


def describe_arithmetic(scorer: Scorer, items: list[Prepared]) -> dict[str, Any]:
    """Watch how some rows are measured.

    Args:
        scorer: the scorer, with its network not compiled.
        items: rows with pixels.

    Returns:
        `dtype`: the precisions of the network's products and convolutions, lowest first; `tf32`: which of the two are
        rounded to TF32 within the measure; `attention`: kernels of attention; `channels_last`: True if all convolutions
        have their channels last, None for a network without convolutions.
    """
    denoiser, images = scorer.flow([item.condition for item in items]).denoiser, scorer.images(items)
    level = torch.tensor(clamp_level(denoiser, LEVEL), dtype=torch.float64)

    def evaluate() -> None:
        with torch.no_grad():
            denoiser.noise(images, level)

    network, whole = _watched(evaluate), _watched(lambda: scorer.launch(items).fetch())
    return {
        "dtype": sorted(network.dtypes, key=lambda name: getattr(torch, name).itemsize),
        "tf32": sorted(whole.tf32),
        "attention": sorted(whole.attention),
        "channels_last": all(network.channels_last) if network.channels_last else None,
    }


def _watched(work: Callable[[], object]) -> Watch:
    with Watch() as watch:
        work()
    return watch
