r"""How a flow moves nearby points: directional derivatives of the expected noise, and QR.

A *stack* is a tensor (B, 1 + k, *image): a point y and k tangents u_1..u_k at it. Evaluating a denoiser on a stack
gives (e(y), J u_1, ..., J u_k) with e the expected noise and J = de/dy. Since every solver step is a linear
combination of stacks, a solver that moves points moves tangents too, by the exact derivative of its own step.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from volgrowth.numerics.denoisers import Denoiser

Stack = Float[Tensor, "batch one_plus_k *image"]
Derivative = Literal["jvp", "difference"]


def noise_stack(denoiser: Denoiser, stack: Stack, noise_level: float, derivative: Derivative, radius: float) -> Stack:
    """(e(y), J u_1, ..., J u_k) at one noise level.

    Args:
        derivative: `jvp`, exact forward-mode derivatives; `difference`, (e(y + radius u) - e(y)) / radius.
        radius: length of the displacement, in y-coordinates; only for differences.
    """
    y, level = stack[:, 0], torch.tensor(noise_level, dtype=torch.float64)
    if derivative == "difference":
        points = torch.cat([y[:, None], y[:, None] + radius * stack[:, 1:]], 1)
        noise = denoiser.noise(points.flatten(0, 1), level).reshape(stack.shape)
        return torch.cat([noise[:, :1], (noise[:, 1:] - noise[:, :1]) / radius], 1)
    rows = []
    # the fused attention kernels have no forward-mode derivative
    with sdpa_kernel(SDPBackend.MATH), _ContiguousGroupNorm():
        for tangent in stack[:, 1:].unbind(1):
            noise, d_noise = torch.func.jvp(lambda y: denoiser.noise(y, level), (y,), (tangent.contiguous(),))[:2]
            rows.append(d_noise)
    return torch.stack([noise, *rows], 1)


class _ContiguousGroupNorm(TorchFunctionMode):
    """The forward-mode derivative of group norm refuses strided images, which attention blocks leave behind."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.group_norm:
            args = (args[0].contiguous(), *args[1:])
        return func(*args, **(kwargs or {}))


def orthonormal(tangents: Float[Tensor, "batch k *image"]) -> tuple[Tensor, Float[Tensor, "batch k k"]]:
    """Householder QR over the image axes: (q, r) with tangents = q r and diag r >= 0.

    The sign is fixed so that a tangent is continued along itself, not along its opposite: for a finite
    difference these are two different things.
    """
    matrix = tangents.flatten(2).mT
    q, r = torch.linalg.qr(matrix)
    sign = torch.where(r.diagonal(dim1=1, dim2=2) < 0, -1.0, 1.0).to(r)
    return (q * sign[:, None]).mT.reshape(tangents.shape), r * sign[:, :, None]


def change_basis(tangents: Float[Tensor, "batch k *image"], r: Float[Tensor, "batch k k"]) -> Tensor:
    """Tangents times r^-1: images of the old frame become images of the frame that QR put in its place."""
    matrix = tangents.flatten(2).mT
    return torch.linalg.solve_triangular(r, matrix, upper=True, left=False).mT.reshape(tangents.shape)
