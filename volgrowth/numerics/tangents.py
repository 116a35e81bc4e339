r"""How a flow moves nearby points: directional derivatives of the expected noise, and QR.

A *stack* is a tensor (B, 1 + k, *image): a point y and k tangents u_1..u_k at it. Evaluating a denoiser on a stack
gives (e(y), J u_1, ..., J u_k) with e the expected noise and J = de/dy. Since every solver step is a linear
combination of stacks, a solver that moves points moves tangents too, by the exact derivative of its own step.

Derivatives come from one pass of the network over points and tangents at once (`numerics.forward`). Networks that this
cannot follow are differentiated by `torch.func.jvp`, one tangent after the other, each with the point again.
"""

from typing import Any, Literal
from weakref import WeakValueDictionary

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from volgrowth.numerics.denoisers import Denoiser
from volgrowth.numerics.forward import NoDerivative, pushforward, say_once

Stack = Float[Tensor, "batch one_plus_k *image"]
Derivative = Literal["jvp", "difference"]

# denoisers that tangents cannot follow in one pass, by id: remembered, so that finding out is paid for once
_one_by_one: WeakValueDictionary[int, Denoiser] = WeakValueDictionary()


def noise_stack(denoiser: Denoiser, stack: Stack, noise_level: float, derivative: Derivative, radius: float) -> Stack:
    """(e(y), J u_1, ..., J u_k) at one noise level.

    Args:
        derivative: `jvp`, exact forward-mode derivatives; `difference`, (e(y + radius u) - e(y)) / radius.
        radius: length of the displacement, in y-coordinates; only for differences.

    Raises:
        NotImplementedError: an operation of the network has no forward-mode derivative.
    """
    y, level = stack[:, 0], torch.tensor(noise_level, dtype=torch.float64)
    if derivative == "difference":
        points = torch.cat([y[:, None], y[:, None] + radius * stack[:, 1:]], 1)
        noise = denoiser.noise(points.flatten(0, 1), level).reshape(stack.shape)
        return torch.cat([noise[:, :1], (noise[:, 1:] - noise[:, :1]) / radius], 1)
    if id(denoiser) in _one_by_one:
        return _jvps(denoiser, stack, level)
    try:
        return pushforward(lambda y: denoiser.noise(y, level), stack.transpose(0, 1)).transpose(0, 1)
    except NoDerivative:
        raise
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError) or "alloc" in str(error).lower():
            raise  # a smaller batch will do
        # whatever it is: where torch.func.jvp meets it too, that says so; the traceback must not keep tensors alive
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    result = _jvps(denoiser, stack, level)
    _one_by_one[id(denoiser)] = denoiser
    say_once(f"tangents go through {type(denoiser).__name__} one by one, exact but slower, since not at once: {reason}")
    return result


def evaluations(denoiser: Denoiser, k: int, derivative: Derivative) -> int:
    """Network evaluations per image that `noise_stack` last took for k tangents: 1 + k, or 2 k where one by one."""
    return 2 * k if derivative == "jvp" and id(denoiser) in _one_by_one else 1 + k


@torch.no_grad()
def _jvps(denoiser: Denoiser, stack: Stack, level: Tensor) -> Stack:
    """By torch.func.jvp."""
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
                    f"({str(error).splitlines()[0]}): measure with derivative='difference', in float32"
                ) from error
            rows.append(d_noise)
    return torch.stack([noise, *rows], 1)


class _ContiguousGroupNorm(TorchFunctionMode):
    """The forward-mode derivative of group norm refuses strided images, which attention blocks leave behind."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.group_norm:
            args = (args[0].contiguous(), *args[1:])
        return func(*args, **(kwargs or {}))


def orthonormal(tangents: Float[Tensor, "batch k *image"]) -> tuple[Tensor, Float[Tensor, "batch k k"]]:
    """QR over the image axes: (q, r) with tangents = q r and diag r > 0.

    By the Cholesky factor of the float64 Gram matrix, twice: in float64 q is orthonormal and r right to rounding up to
    condition 1e7 (Yamamoto et al., CholeskyQR2, ETNA 44, 2015), far beyond what one step makes of a frame.
    Householder's `torch.linalg.qr` is as good and takes a GPU one call for each matrix of the batch. With diag r > 0 a
    tangent is continued along itself, not along its opposite: for a finite difference these are two different things.
    Where tangents are dependent, r has what rounding leaves in place of a zero, or both are nan.
    """
    rows, r = tangents.flatten(2).double(), None
    for _ in range(2):
        factor, failed = torch.linalg.cholesky_ex(rows @ rows.mT)
        factor = torch.where(failed[:, None, None] == 0, factor, torch.nan)
        rows = torch.linalg.solve_triangular(factor, rows, upper=False)
        r = factor.mT if r is None else factor.mT @ r
    assert r is not None
    return rows.reshape(tangents.shape).to(tangents), r.to(tangents)


def change_basis(tangents: Float[Tensor, "batch k *image"], r: Float[Tensor, "batch k k"]) -> Tensor:
    """Tangents times r^-1: images of the old frame become images of the frame that QR put in its place."""
    matrix = tangents.flatten(2).mT
    return torch.linalg.solve_triangular(r, matrix, upper=True, left=False).mT.reshape(tangents.shape)
