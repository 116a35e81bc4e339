r"""Rules for layers: maps that are linear up to an offset, activations, norms and softmax.

An activation has a diagonal Jacobian, so its product with a tangent equals its product with a gradient, which the fused
backward kernel computes, in float32 inside if entries have less. The Jacobian of softmax is symmetric, and so is that
of a norm without its weights: with x^ = (x - m) / s over a group and M the projection off 1 and x^, d x^ = M dx / s.
Hence the tangent of y = w x^ + b is w times the output of the norm's backward kernel for dx.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from volgrowth.numerics.forward.dual import FUNCTIONS, Dual, blank, rule

aten = torch.ops.aten


@rule("convolution")
def _convolution(op: Any, x: Any, weight: Tensor, bias: Tensor | None, *settings: Any) -> Any:
    if not isinstance(x, Dual) or isinstance(weight, Dual) or isinstance(bias, Dual):
        return NotImplemented
    rows = op(x.rows.flatten(0, 1), weight, None, *settings).unflatten(0, x.rows.shape[:2])
    if bias is not None:
        rows[0] += bias.reshape(-1, *(1,) * (x.ndim - 2))
    return Dual(rows)


def _linear(x: Any, weight: Tensor, bias: Tensor | None = None) -> Any:
    if not isinstance(x, Dual) or isinstance(weight, Dual) or isinstance(bias, Dual):
        return NotImplemented
    rows = functional.linear(x.rows, weight)
    if bias is not None:
        rows[0] += bias
    return Dual(rows)


FUNCTIONS[functional.linear] = _linear


@rule(
    "upsample_nearest2d",
    "_upsample_nearest_exact2d",
    "upsample_bilinear2d",
    "_upsample_bilinear2d_aa",
    "upsample_bicubic2d",
    "avg_pool2d",
    "_adaptive_avg_pool2d",
    "reflection_pad2d",
    "replication_pad2d",
    "pixel_shuffle",
    "pixel_unshuffle",
)
def _on_images(op: Any, x: Dual, *settings: Any, **named: Any) -> Any:
    """Apply an operation that is linear and treats images one by one."""
    if x.ndim != 4:
        return NotImplemented
    return Dual(op(x.rows.flatten(0, 1), *settings, **named).unflatten(0, x.rows.shape[:2]))


def _of_input(value: Any, slope: Any) -> tuple[Any, Callable[..., Any]]:
    """Return f and a kernel that computes f'(x) u from u, x and the settings of f."""
    return value, lambda u, x, y, out, *settings, **named: slope(u, x, *settings, **named, grad_input=out)


def _of_output(value: Any, slope: Any) -> tuple[Any, Callable[..., Any]]:
    """Return f and a kernel that computes f'(x) u from u and f(x)."""
    return value, lambda u, x, y, out: slope(u, y, grad_input=out)


# f, and out = f'(x) u from (u, x, f(x), out, settings of f)
ACTIVATIONS: dict[Any, tuple[Any, Callable[..., Any]]] = {
    aten.silu: _of_input(aten.silu.out, aten.silu_backward.grad_input),
    aten.gelu: _of_input(aten.gelu.out, aten.gelu_backward.grad_input),
    aten.sigmoid: _of_output(aten.sigmoid.out, aten.sigmoid_backward.grad_input),
    aten.tanh: _of_output(aten.tanh.out, aten.tanh_backward.grad_input),
    aten.relu: (aten.relu.out, lambda u, x, y, out: aten.threshold_backward.grad_input(u, x, 0, grad_input=out)),
    aten.mish: (aten.mish.out, lambda u, x, y, out: out.copy_(aten.mish_backward(u, x))),
    aten.hardswish: (aten.hardswish.out, lambda u, x, y, out: out.copy_(aten.hardswish_backward(u, x))),
    aten.softplus: (
        aten.softplus.out,
        lambda u, x, y, out, beta=1, threshold=20: aten.softplus_backward(u, x, beta, threshold, grad_input=out),
    ),
    aten.leaky_relu: (
        aten.leaky_relu.out,
        lambda u, x, y, out, slope=0.01: aten.leaky_relu_backward(u, x, slope, False, grad_input=out),
    ),
    aten.elu: (
        aten.elu.out,
        lambda u, x, y, out, alpha=1, scale=1, inner=1: aten.elu_backward(
            u, alpha, scale, inner, False, x, grad_input=out
        ),
    ),
}


@rule(*(packet.__name__ for packet in ACTIVATIONS))
def _activation(op: Any, x: Dual, *settings: Any, **named: Any) -> Dual:
    value, slope = ACTIVATIONS[op.overloadpacket]
    rows = torch.empty_like(x.rows)
    point, tangents = x.point, x.rows[1:]
    result = value(point, *settings, **named, out=rows[0])
    slope(tangents, point.expand_as(tangents), result.expand_as(tangents), rows[1:], *settings, **named)
    return Dual(rows)


@rule("_softmax")
def _softmax(op: Any, x: Dual, axis: int, half_to_float: bool) -> Dual:
    rows = blank(value := op(x.point, axis, half_to_float), len(x.rows))
    for row, tangent in zip(rows[1:], x.rows[1:], strict=True):
        row.copy_(aten._softmax_backward_data(tangent.to(value.dtype), value, axis, value.dtype))
    return Dual(rows)


@rule("native_group_norm")
def _group_norm(
    op: Any, x: Any, weight: Any, bias: Any, batch: int, channels: int, pixels: int, groups: int, eps: float
) -> Any:
    if not isinstance(x, Dual) or isinstance(weight, Dual) or isinstance(bias, Dual):
        return NotImplemented
    point, sizes = x.point, (batch, channels, pixels, groups)
    value, mean, scale = op(point, weight, bias, *sizes, eps)
    rows = blank(value, len(x.rows))
    for row, tangent in zip(rows[1:], x.rows[1:], strict=True):
        if not value.is_contiguous():
            _normed_in_place(row, tangent, point, weight, mean, scale)
            continue
        moved, _, _ = aten.native_group_norm_backward(
            tangent.contiguous(), point.contiguous(), mean, scale, None, *sizes, [True, False, False]
        )
        _weighed(moved, None if weight is None else weight.reshape(-1, *(1,) * (x.ndim - 2)), row)
    return Dual(rows), mean, scale


def _normed_in_place(row: Tensor, u: Tensor, x: Tensor, weight: Any, mean: Tensor, scale: Tensor) -> None:
    """Compute row = w (u - E u - x^ E(x^ u)) / s for channels-last images, which the kernel would copy three times.

    With E the mean over a group this is a u + b x + c, and a, b, c depend only on image and channel.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    shape = (*mean.shape, -1)  # (B, groups, channels of a group)
    mean, scale = mean.to(dtype)[..., None], scale.to(dtype)[..., None]
    axes = tuple(range(2, x.ndim))
    mean_u, mean_xu = (each.mean(axes, dtype=dtype).reshape(shape).mean(2, keepdim=True) for each in (u, x * u))
    a = (scale if weight is None else scale * weight.to(dtype).reshape(1, shape[1], -1)).expand(
        *mean.shape[:2], x.shape[1] // shape[1]
    )
    b = -a * scale * scale * (mean_xu - mean * mean_u)
    c = -a * mean_u - b * mean
    a, b, c = (each.reshape(*x.shape[:2], *(1,) * len(axes)).to(x.dtype) for each in (a, b, c))
    torch.addcmul(c, b, x, out=row).addcmul_(a, u)


@rule("native_layer_norm")
def _layer_norm(op: Any, x: Any, shape: list[int], weight: Any, bias: Any, eps: float) -> Any:
    if not isinstance(x, Dual) or isinstance(weight, Dual) or isinstance(bias, Dual):
        return NotImplemented
    point = x.point.contiguous()
    value, mean, scale = op(point, shape, weight, bias, eps)
    rows = blank(value, len(x.rows))
    for row, tangent in zip(rows[1:], x.rows[1:], strict=True):
        moved, _, _ = aten.native_layer_norm_backward(
            tangent.contiguous(), point, shape, mean, scale, None, None, [True, False, False]
        )
        _weighed(moved, weight, row)
    return Dual(rows), mean, scale


@rule("_fused_rms_norm")
def _rms_norm(op: Any, x: Any, shape: list[int], weight: Any, eps: float | None) -> Any:
    """Apply RMS norm, whose tangent is d x^ = (dx - x^ mean(x^ dx)) / s."""
    if not isinstance(x, Dual) or isinstance(weight, Dual):
        return NotImplemented
    value, scale = op(x.point, shape, weight, eps)
    rows, unit = blank(value, len(x.rows)), x.point * scale
    for row, tangent in zip(rows[1:], x.rows[1:], strict=True):
        along = (unit * tangent).mean(tuple(range(-len(shape), 0)), keepdim=True)
        _weighed((tangent - unit * along) * scale, weight, row)
    return Dual(rows), scale


def _weighed(moved: Tensor, weight: Tensor | None, row: Tensor) -> None:
    if weight is None:
        row.copy_(moved)
    else:
        row.copy_(moved * weight) if moved.dtype != row.dtype else torch.mul(moved, weight, out=row)
