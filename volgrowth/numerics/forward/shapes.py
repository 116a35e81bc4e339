"""Rules for operations that move entries about, such as views, joins and copies.

Rows have one axis before those of the point, so axes that count from the end stay and others move by one.
"""

from typing import Any

import torch
from torch import Tensor

from volgrowth.numerics.forward.dual import Dual, is_real, rule, with_tangents

CHANNELS_LAST = (torch.channels_last, torch.channels_last_3d)


def shifted(axis: int) -> int:
    """Return the axis of the rows that an axis of the point is."""
    return axis if axis < 0 else axis + 1


def lifted(x: Any, ndim: int) -> Any:
    """Return rows that broadcast like a point of `ndim` axes; a tensor without tangents broadcasts as it is."""
    if not isinstance(x, Dual) or x.ndim == ndim:
        return x.rows if isinstance(x, Dual) else x
    return x.rows[(slice(None), *(None,) * (ndim - x.ndim))]


@rule("view", "_unsafe_view", "reshape")
def _view(op: Any, x: Dual, size: Any) -> Any:
    if isinstance(size, torch.dtype):
        return NotImplemented
    return Dual(op(x.rows, [len(x.rows), *size]))


@rule("expand")
def _expand(op: Any, x: Dual, size: list[int], *, implicit: bool = False) -> Dual:
    return Dual(lifted(x, len(size)).expand(len(x.rows), *size))


@rule("repeat")
def _repeat(op: Any, x: Dual, times: list[int]) -> Dual:
    return Dual(op(lifted(x, len(times)), [1, *times]))


@rule("select", "slice", "unbind", "unsqueeze", "unfold")
def _on_axis(op: Any, x: Dual, axis: int = 0, *rest: Any, **named: Any) -> Any:
    moved = op(x.rows, shifted(axis), *rest, **named)
    return Dual(moved) if isinstance(moved, Tensor) else [Dual(part) for part in moved]


@rule("split", "split_with_sizes")
def _split(op: Any, x: Dual, size: Any, axis: int = 0) -> list[Dual]:
    return [Dual(part) for part in op(x.rows, size, shifted(axis))]


@rule("transpose")
def _transpose(op: Any, x: Dual, one: int, other: int) -> Dual:
    return Dual(op(x.rows, shifted(one), shifted(other)))


@rule("t")
def _matrix_transpose(op: Any, x: Dual) -> Dual:
    return Dual(x.rows.mT if x.ndim == 2 else x.rows)


@rule("permute")
def _permute(op: Any, x: Dual, axes: list[int]) -> Dual:
    return Dual(op(x.rows, [0, *map(shifted, axes)]))


@rule("flip")
def _flip(op: Any, x: Dual, axes: list[int]) -> Dual:
    return Dual(op(x.rows, [*map(shifted, axes)]))


@rule("squeeze")
def _squeeze(op: Any, x: Dual, axes: Any = None) -> Dual:
    if axes is None:
        axes = [i for i, size in enumerate(x.shape) if size == 1]
    return Dual(x.rows.squeeze([shifted(i) for i in ([axes] if isinstance(axes, int) else axes)]))


@rule("alias", "detach")
def _same(op: Any, x: Dual) -> Dual:
    return Dual(x.rows)


@rule("view_as_complex", "view_as_real", "_conj")
def _complex(op: Any, x: Dual) -> Dual:
    return Dual(op(x.rows))


@rule("clone", "_to_copy")
def _copy(op: Any, x: Dual, *, memory_format: Any = None, **named: Any) -> Any:
    if memory_format in CHANNELS_LAST:
        copied = op(x.rows.flatten(0, 1), memory_format=memory_format, **named).unflatten(0, x.rows.shape[:2])
    else:
        copied = op(x.rows, memory_format=memory_format, **named)
    return Dual(copied) if is_real(copied) else copied[0]


@rule("cat")
def _join(op: Any, tensors: list[Tensor], axis: int = 0) -> Dual:
    count = next(len(x.rows) for x in tensors if isinstance(x, Dual))
    rows = [with_tangents(x, count) for x in tensors]
    if axis > 0:  # with the axis of the batch in front, channels-last images keep their order
        return Dual(op([each.flatten(0, 1) for each in rows], axis).unflatten(0, rows[0].shape[:2]))
    return Dual(op(rows, shifted(axis)))


@rule("stack")
def _stack(op: Any, tensors: list[Tensor], axis: int = 0) -> Dual:
    count = next(len(x.rows) for x in tensors if isinstance(x, Dual))
    return Dual(op([with_tangents(x, count) for x in tensors], shifted(axis)))


@rule("index")
def _index(op: Any, x: Tensor, indices: list[Tensor | None]) -> Any:
    at = [i for i, index in enumerate(indices) if index is not None]
    if not isinstance(x, Dual) or at[-1] - at[0] >= len(at):
        return NotImplemented  # indices with a gap put their axes first, before that of the rows
    return Dual(op(x.rows, [None, *indices]))


@rule("constant_pad_nd")
def _pad(op: Any, x: Dual, pads: list[int], value: float = 0) -> Dual:
    padded = op(x.rows, pads, value)
    if value != 0:
        padded[1:] = op(x.rows[1:], pads, 0)
    return Dual(padded)


@rule("copy_")
def _written(op: Any, target: Tensor, source: Tensor, non_blocking: bool = False) -> Any:
    if not isinstance(target, Dual):
        return NotImplemented
    if isinstance(source, Dual):
        target.rows.copy_(lifted(source, target.ndim))
    else:
        target.rows.zero_()[0] = source
    return target


@rule("fill_", "zero_")
def _filled(op: Any, target: Tensor, value: Any = 0) -> Any:
    if isinstance(value, Dual):
        return NotImplemented
    return _written(op, target, torch.as_tensor(value))


@rule("zeros_like", "empty_like", "new_zeros", "new_empty")
def _fresh(op: Any, x: Dual, *rest: Any, **named: Any) -> Any:
    """Make a tensor with tangents, since the network may write values with tangents into it."""
    made = op(x.point, *rest, **named)
    return Dual(with_tangents(made, len(x.rows))) if is_real(made) else made
