r"""Tangents: directional derivatives of the expected noise, and their orthogonalisation.

A *tangent* u at a point y is a direction in which the point could be displaced. A *stack* is a tensor (B, 1 + k,
*image) of points y and k tangents u_1..u_k at each. Evaluating a denoiser on a stack gives

    (e(y), J u_1, ..., J u_k)        e the expected noise, J = de/dy

Every solver step is a linear combination of such stacks, so a solver that moves points moves their tangents too, by the
exact derivative of its own step.

Derivatives come from one pass of the network over points and tangents at once (`numerics.forward`). If that pass does
not support a network, `torch.func.jvp` differentiates it for one tangent after the other, each with the point again.
"""

from typing import Any, Literal
from weakref import WeakValueDictionary

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from volgrowth.errors import first_line, kind_and_line
from volgrowth.numerics.denoisers import Denoiser
from volgrowth.numerics.forward import NoDerivative, pushforward, say_once
from volgrowth.numerics.memory import out_of_memory
from volgrowth.numerics.precision import in_float64

Stack = Float[Tensor, "batch one_plus_k *image"]
Derivative = Literal["jvp", "difference"]

# denoisers that one pass does not support, by id: remembered, so that finding out is paid for once
_one_by_one: WeakValueDictionary[int, Denoiser] = WeakValueDictionary()


def noise_stack(denoiser: Denoiser, stack: Stack, noise_level: float, derivative: Derivative, radius: float) -> Stack:
    """Return the expected noise at points and its derivatives along their tangents: (e(y), J u_1, ..., J u_k).

    Args:
        denoiser: the model.
        stack: points and tangents (B, 1 + k, *image), y-coordinates.
        noise_level: one noise level for all points.
        derivative: `jvp` for exact forward-mode derivatives; `difference` for (e(y + radius u) - e(y)) / radius.
        radius: length of the displacement in y-coordinates; not used by `jvp`.

    Returns:
        (B, 1 + k, *image), of the stack's dtype.

    Raises:
        NotImplementedError: an operation of the network has no forward-mode derivative.
    """
    y, level = stack[:, 0], torch.tensor(noise_level, dtype=torch.float64)
    if derivative == "difference":
        points = torch.cat([y[:, None], y[:, None] + radius * stack[:, 1:]], 1)
        noise = denoiser.noise(points.flatten(0, 1), level).reshape(stack.shape)
        return torch.cat([noise[:, :1], (noise[:, 1:] - noise[:, :1]) / radius], 1)
    if id(denoiser) in _one_by_one:
        return tangents_one_by_one(denoiser, stack, level)
    try:
        return pushforward(lambda y: denoiser.noise(y, level), stack.transpose(0, 1)).transpose(0, 1)
    except NoDerivative:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise  # a smaller batch will do
        # torch.func.jvp reports an error of its own if it fails too; only text is kept, since a traceback holds tensors
        reason = kind_and_line(error)
    result = tangents_one_by_one(denoiser, stack, level)
    _one_by_one[id(denoiser)] = denoiser
    say_once(f"tangents go through {type(denoiser).__name__} one by one, exact but slower, since not at once: {reason}")
    return result


def evaluations(denoiser: Denoiser, k: int, derivative: Derivative) -> int:
    """Return the network evaluations per image of `noise_stack` for k tangents: 1 + k, or 2 k if taken one by one."""
    return 2 * k if derivative == "jvp" and id(denoiser) in _one_by_one else 1 + k


@torch.no_grad()
def tangents_one_by_one(denoiser: Denoiser, stack: Stack, level: Tensor) -> Stack:
    """Return what `noise_stack` does, by torch.func.jvp, for one tangent after the other."""
    rows = []
    # the fused attention kernels have no forward-mode derivative
    with sdpa_kernel(SDPBackend.MATH), _ContiguousGroupNorm():
        for tangent in stack[:, 1:].unbind(1):
            try:
                noise, d_noise = torch.func.jvp(
                    lambda y: denoiser.noise(y, level), (stack[:, 0],), (tangent.contiguous(),)
                )[:2]
            except NotImplementedError as error:
                raise NotImplementedError(
                    f"{type(denoiser).__name__} uses an operation without a forward-mode derivative "
                    f"({first_line(error)}): measure with derivative='difference', in float32"
                ) from error
            rows.append(d_noise)
    return torch.stack([noise, *rows], 1)


class _ContiguousGroupNorm(TorchFunctionMode):
    """Makes inputs of group norm contiguous: torch's forward-mode derivative refuses others, which attention makes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.group_norm:
            args = (args[0].contiguous(), *args[1:])
        return func(*args, **(kwargs or {}))


def orthonormal(tangents: Float[Tensor, "batch k *image"]) -> tuple[Tensor, Float[Tensor, "batch k k"]]:
    """Orthogonalise tangents: QR over the image axes, tangents = q r with diag r > 0.

    The Cholesky factor of the float64 Gram matrix is used, twice: q is orthonormal and r correct to float64 rounding up
    to condition 1e7 (Yamamoto et al., CholeskyQR2, ETNA 44, 2015), far beyond the condition of a frame after one step.
    Householder's `torch.linalg.qr` is as accurate, but makes a GPU do one call per matrix of the batch. With diag r > 0
    a tangent goes on along itself and not along its opposite; for a finite difference these are two different things.

    Args:
        tangents: (B, k, *image).

    Returns:
        q (B, k, *image) and r (B, k, k), upper triangular, in the tangents' dtype. If tangents are linearly dependent,
        r has rounding errors in place of a zero on its diagonal, or both are nan.
    """
    rows, r = in_float64(tangents.flatten(2)), None
    for _ in range(2):
        factor, failed = torch.linalg.cholesky_ex(rows @ rows.mT)
        factor = torch.where(failed[:, None, None] == 0, factor, torch.nan)
        rows = torch.linalg.solve_triangular(factor, rows, upper=False)
        r = factor.mT if r is None else factor.mT @ r
    assert r is not None
    return rows.reshape(tangents.shape).to(tangents), r.to(tangents)


def change_basis(tangents: Float[Tensor, "batch k *image"], r: Float[Tensor, "batch k k"]) -> Tensor:
    """Return tangents times r^-1, (B, k, *image): images of a frame become images of the frame that QR made of it.

    Args:
        tangents: (B, k, *image), images of the old frame under a linear map.
        r: (B, k, k), the factor of the old frame.
    """
    matrix = tangents.flatten(2).mT
    return torch.linalg.solve_triangular(r, matrix, upper=True, left=False).mT.reshape(tangents.shape)
