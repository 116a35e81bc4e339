r"""Rules for sums, products, and functions of one number.

d(a + b) = da + db      d(a b) = da b + a db      d(a / b) = (da - (a / b) db) / b      df(a) = f'(a) da
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from volgrowth.numerics.forward.dual import Dual, blank, rule, with_tangents
from volgrowth.numerics.forward.shapes import lifted, shifted

aten = torch.ops.aten


def _ndim(*values: Any) -> int | None:
    """Return the number of axes of the result; None if a point without axes may take on another operand's dtype."""
    tensors = [x for x in values if isinstance(x, Tensor)]
    ndim = max(x.ndim for x in tensors)
    if any(x.ndim == 0 and isinstance(x, Dual) for x in tensors) and len({x.dtype for x in tensors}) > 1:
        return None
    return ndim


def _point(x: Any) -> Any:
    return x.point if isinstance(x, Dual) else x


@rule("add", "sub", "rsub")
def _sum(op: Any, a: Any, b: Any, alpha: Any = 1) -> Any:
    if (ndim := _ndim(a, b)) is None:
        return NotImplemented
    if isinstance(a, Dual) and isinstance(b, Dual):
        return Dual(op(lifted(a, ndim), lifted(b, ndim), alpha=alpha))
    moving = a if isinstance(a, Dual) else b
    value = op(_point(a), _point(b), alpha=alpha)
    rows = blank(value, len(moving.rows))
    rows[1:] = lifted(moving, ndim)[1:]
    kind = op.overloadpacket  # add: a + alpha b, sub: a - alpha b, rsub: b - alpha a
    factor = 1 if (moving is a) != (kind is aten.rsub) else alpha if kind is aten.add else -alpha
    if factor != 1:
        rows[1:] *= factor
    return Dual(rows)


@rule("where")
def _choice(op: Any, condition: Any, a: Any, b: Any) -> Any:
    if (ndim := _ndim(condition, a, b)) is None or not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return NotImplemented
    moving: Any = a if isinstance(a, Dual) else b
    if not isinstance(moving, Dual):
        return NotImplemented
    count = len(moving.rows)
    dtype = torch.result_type(_point(a), _point(b))
    a, b = (lifted(x if isinstance(x, Dual) else Dual(with_tangents(x.to(dtype), count)), ndim) for x in (a, b))
    return Dual(op(condition, a, b))


@rule("mul")
def _product(op: Any, a: Any, b: Any) -> Any:
    if (ndim := _ndim(a, b)) is None:
        return NotImplemented
    if not isinstance(a, Dual):
        a, b = b, a
    if not isinstance(b, Dual):
        return Dual(op(lifted(a, ndim), b))
    rows = op(lifted(a, ndim), b.point)
    rows[1:].addcmul_(a.point, lifted(b, ndim)[1:])
    return Dual(rows)


@rule("div")
def _quotient(op: Any, a: Any, b: Any, **rounding: Any) -> Any:
    if (ndim := _ndim(a, b)) is None or rounding.get("rounding_mode"):
        return NotImplemented
    if not isinstance(b, Dual):
        return Dual(op(lifted(a, ndim), b))
    value = op(_point(a), b.point)
    slope = -value / b.point
    if isinstance(a, Dual):
        rows = op(lifted(a, ndim), b.point)
        rows[1:].addcmul_(slope, lifted(b, ndim)[1:])
    else:
        rows = blank(value, len(b.rows))
        torch.mul(lifted(b, ndim)[1:], slope, out=rows[1:])
    return Dual(rows)


@rule("neg")
def _homogeneous(op: Any, x: Dual) -> Dual:
    return Dual(op(x.rows))


SLOPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # f'(x) from x and f(x)
    "exp": lambda x, value: value,
    "expm1": lambda x, value: value + 1,
    "log": lambda x, value: 1 / x,
    "log1p": lambda x, value: 1 / (1 + x),
    "sqrt": lambda x, value: 0.5 / value,
    "rsqrt": lambda x, value: -0.5 * value / x,
    "reciprocal": lambda x, value: -value * value,
    "sin": lambda x, value: x.cos(),
    "cos": lambda x, value: -x.sin(),
    "erf": lambda x, value: 2 / math.sqrt(math.pi) * (-x * x).exp(),
    "abs": lambda x, value: x.sgn(),
}


@rule(*SLOPES)
def _function(op: Any, x: Dual) -> Dual:
    return _along(x, value := op(x.point), SLOPES[op.overloadpacket.__name__](x.point, value))


@rule("pow")
def _power(op: Any, x: Any, exponent: Any) -> Any:
    if isinstance(exponent, Tensor) or exponent == 0:
        return NotImplemented
    return _along(x, op(x.point, exponent), exponent * x.point ** (exponent - 1))


def _along(x: Dual, value: Tensor, slope: Tensor) -> Dual:
    rows = blank(value, len(x.rows))
    torch.mul(x.rows[1:], slope, out=rows[1:])
    return Dual(rows)


@rule("sum", "mean")
def _reduced(op: Any, x: Dual, axes: Any = None, keepdim: bool = False, **dtype: Any) -> Dual:
    axes = range(x.ndim) if axes is None or len(axes) == 0 else axes
    if x.ndim == 0:
        return Dual(x.rows.clone())
    return Dual(op.overloadpacket(x.rows, [shifted(axis) for axis in axes], keepdim, **dtype))


@rule("mm", "bmm")
def _matrix_product(op: Any, a: Any, b: Any) -> Dual:
    if not isinstance(b, Dual) and isinstance(a, Dual) and a.ndim == 2:
        return Dual(a.rows @ b)
    times = torch.mm if a.ndim == 2 else torch.bmm
    rows = blank(times(_point(a), _point(b)), len((a if isinstance(a, Dual) else b).rows))
    for i in range(1, len(rows)):  # one by one, since one product of all would copy the factor without tangents
        if not isinstance(b, Dual):
            times(a.rows[i], b, out=rows[i])
            continue
        times(_point(a), b.rows[i], out=rows[i])
        if isinstance(a, Dual):
            rows[i] += times(a.rows[i], b.point)
    return Dual(rows)


@rule("addmm", "baddbmm")
def _sum_with_product(op: Any, c: Any, a: Any, b: Any, *, beta: Any = 1, alpha: Any = 1) -> Any:
    if not isinstance(a, Dual) and not isinstance(b, Dual):
        return NotImplemented
    rows = _matrix_product(op, a, b).rows
    if alpha != 1:
        rows *= alpha
    if beta == 0:  # then c may be anything, by the operation's definition
        return Dual(rows)
    if isinstance(c, Dual):
        rows += beta * lifted(c, a.ndim)
    else:
        rows[0] += beta * c
    return Dual(rows)
