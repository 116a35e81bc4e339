"""A tensor that carries tangents, and how one operation is applied to it. See the package's docstring."""

import functools
import logging
import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.overrides import enable_reentrant_dispatch
from torch.utils._pytree import tree_flatten, tree_unflatten

Rule = Callable[..., Any]
RULES: dict[Any, Rule] = {}  # rules for operations of the dispatcher; all overloads of one share a key
FUNCTIONS: dict[Any, Rule] = {}  # rules for functions of torch.nn.functional that would decompose into many operations

log = logging.getLogger("volgrowth")


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of the named operations, of which this version of torch may lack some.

    The function is called with the operation and its arguments, at least one of them a `Dual`. It returns the
    operation's result, or NotImplemented for a case that it does not cover, which is then differentiated in general.
    """

    def enter(function: Rule) -> Rule:
        found = [getattr(torch.ops.aten, name) for name in names if hasattr(torch.ops.aten, name)]
        RULES.update(dict.fromkeys(found, function))
        return function

    return enter


def is_real(x: Any) -> bool:
    """Return True for a tensor of a dtype that has derivatives: floating point or complex."""
    return isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex())


class NoRule(Exception):  # noqa: N818 - the caller uses another method, nothing is wrong
    """An operation that tangents cannot pass here, so that another method must differentiate the network."""


class NoDerivative(NotImplementedError):  # noqa: N818 - named like NotImplementedError, which it is
    """An operation that torch has no forward-mode derivative for, by any method."""


class Dual(Tensor):
    """A tensor with tangents: `rows` (1 + k, *shape) holds the point and then its k tangents."""

    rows: Tensor

    @staticmethod
    def __new__(cls, rows: Tensor) -> "Dual":
        # strides are the point's own, so that torch decides about views as it would for the point
        self = torch.Tensor._make_wrapper_subclass(
            cls, rows.shape[1:], strides=rows.stride()[1:], dtype=rows.dtype, device=rows.device
        )
        self.rows = rows
        return self

    def __init__(self, rows: Tensor):
        pass

    @property
    def point(self) -> Tensor:
        """Row 0 of the rows."""
        return self.rows[0]

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Dual({self.rows!r})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            rule = FUNCTIONS.get(func)
            if rule is not None:
                result = rule(*args, **(kwargs or {}))
                if result is not NotImplemented:
                    return result
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return push(func, args, kwargs or {})


def push(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Apply an operation of the dispatcher: by its rule, else as an operation in place, else in general."""
    rule = RULES.get(op.overloadpacket)
    if rule is not None:
        result = rule(op, *args, **kwargs)
        if result is not NotImplemented:
            return result
    if op._schema.is_mutable:
        return _in_place(op, args, kwargs)
    # inference mode shows composite operations, which otherwise have been taken apart before they come here
    result = op.decompose(*args, **kwargs)
    return result if result is not NotImplemented else _in_general(op, args, kwargs)


def _in_place(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Dual:
    """Apply x.op_(...) as x.copy_(x.op(...)); rows of views are views of rows, so that other views see the result."""
    target, name = args[0], op.overloadpacket.__name__
    twin = getattr(torch.ops.aten, name.removesuffix("_"), None)
    if not (name.endswith("_") and twin is not None and isinstance(target, Dual)):
        raise NoRule(f"{op} writes a tensor with tangents into one without")
    result = push(getattr(twin, op._overloadname), args, kwargs)
    target.rows.copy_(with_tangents(result, len(target.rows)))
    return target


def _in_general(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Differentiate this operation alone by torch.func.jvp, with the tangents mapped over it."""
    leaves, structure = tree_flatten((args, kwargs))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Dual)]
    stacks = [leaves[i].rows for i in places]

    def call(*points: Tensor) -> Any:
        filled = list(leaves)
        for i, point in zip(places, points, strict=True):
            filled[i] = point
        args, kwargs = tree_unflatten(filled, structure)
        return op(*args, **kwargs)

    def call_for_reals(*points: Tensor) -> tuple[Tensor, ...]:
        return tuple(filter(is_real, tree_flatten(call(*points))[0]))

    points = tuple(rows[0] for rows in stacks)
    outputs, structure_of_outputs = tree_flatten(call(*points))
    if any(map(is_real, outputs)):  # else a comparison, an index, a number: nothing that has a tangent
        _check_general(op)
        with enable_reentrant_dispatch(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop")
            moved = torch.func.vmap(lambda *tangents: torch.func.jvp(call_for_reals, points, tangents)[1])(
                *(rows[1:] for rows in stacks)
            )
        tangents = iter(moved)
        outputs = [Dual(torch.cat([x[None], next(tangents).to(x.dtype)])) if is_real(x) else x for x in outputs]
    return tree_unflatten(outputs, structure_of_outputs)


def _check_general(op: Any) -> None:
    """Raise an error if torch.func.jvp would give a wrong derivative of this operation."""
    if op.namespace != "aten":  # where torch would take the derivative for zero without a word
        raise NoDerivative(
            f"{op} is an operation whose forward-mode derivative torch does not know: measure with "
            f"derivative='difference', in float32"
        )
    if any(returned.alias_info for returned in op._schema.returns):
        raise NoRule(f"{op} gives a view, through which the network might write")
    say_once(f"{op.overloadpacket} has no rule of its own: its derivative is taken by torch.func.jvp, exact but slower")


def blank(point: Tensor, count: int) -> Tensor:
    """Allocate rows in the point's own memory layout, with the point in row 0 and the others empty."""
    rows = torch.empty_strided(
        (count, *point.shape), (point.numel(), *point.stride()), dtype=point.dtype, device=point.device
    )
    rows[0] = point
    return rows


def with_tangents(x: Any, count: int) -> Tensor:
    """Return the rows of any tensor; those of a plain tensor have zeros as tangents."""
    if isinstance(x, Dual):
        return x.rows
    rows = x.new_zeros(count, *x.shape)
    rows[0] = x
    return rows


@functools.cache
def say_once(sentence: str) -> None:
    """Write a warning to the log, unless this process has written it before."""
    log.warning(sentence)


def _eager() -> AbstractContextManager[Any]:
    """Run compiled modules uncompiled, since compiled code does not support tangents."""
    loaded = "torch._dynamo" in sys.modules  # else nothing is compiled, and loading it takes seconds
    return torch.compiler.set_stance("force_eager") if loaded else nullcontext()


@torch.no_grad()
def pushforward(
    function: Callable[[Tensor], Tensor], rows: Float[Tensor, "one_plus_k batch *image"]
) -> Float[Tensor, "one_plus_k batch *output"]:
    """Return (f(y), f'(y) u_1, ..., f'(y) u_k) from (y, u_1, ..., u_k).

    Tangents are scaled to entries of size about 1 on the way, as images have, and back at the end, since float16 cannot
    represent much smaller numbers. The factors are powers of two, which round nothing.

    Args:
        function: f, which must treat the images of a batch one by one.
        rows: (1 + k, B, *image), the points and then their tangents.

    Returns:
        (1 + k, B, *output).

    Raises:
        NoRule: tangents cannot pass an operation of f here.
        NoDerivative: torch has no forward-mode derivative of an operation of f.
    """
    size = rows[1:].flatten(2).square().mean(2).sqrt()
    exponent = torch.frexp(size).exponent
    scaled = rows.clone(memory_format=torch.contiguous_format)
    _scale(scaled[1:], -exponent)
    with _eager():
        moved = function(Dual(scaled))
    if not isinstance(moved, Dual):
        raise NoRule("the result has lost its tangents")
    result = moved.rows.clone()
    _scale(result[1:], exponent)
    return result


def _scale(tangents: Tensor, exponent: Tensor) -> None:
    """Multiply each tangent of each image by its power of two, in place."""
    tangents.mul_(torch.exp2(exponent.to(tangents)).reshape(*exponent.shape, *(1,) * (tangents.ndim - 2)))
