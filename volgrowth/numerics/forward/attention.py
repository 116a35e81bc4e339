r"""The rule for attention, O = P V with P = softmax(S) and S = scale Q K^T + mask, by the product rule:

    dS = scale (dQ K^T + Q dK^T)        dP = P * (dS - sum_j P_ij dS_ij)        dO = dP V + P dV

The fused kernels compute O and do not return P, so P is computed again, in blocks of heads and queries whose size suits
the device. Memory stays linear in the number of tokens.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from volgrowth.numerics.forward.dual import FUNCTIONS, Dual

BLOCK_ENTRIES = {"cpu": 2**18}  # entries of P in one block, which fit into a core's cache
DEVICE_BLOCK_ENTRIES = 2**26  # other devices work on more at once: 128 MiB in half precision


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    inputs = (query, key, value)
    heads = query.shape[:-2]
    if dropout_p > 0 or isinstance(attn_mask, Dual) or any(x.shape[:-2] != heads for x in inputs):
        with sdpa_kernel(SDPBackend.MATH):  # rarer cases, such as shared keys, decompose into operations with rules
            return functional.scaled_dot_product_attention(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
    points = [x.point if isinstance(x, Dual) else x for x in inputs]
    output = functional.scaled_dot_product_attention(
        points[0], points[1], points[2], attn_mask, is_causal=is_causal, scale=scale
    )
    count = next(len(x.rows) for x in inputs if isinstance(x, Dual))
    rows = torch.empty(count, heads.numel(), *output.shape[-2:], dtype=output.dtype, device=output.device)
    rows[0] = output.reshape(rows.shape[1:])

    scale = query.shape[-1] ** -0.5 if scale is None else scale
    q, k, v = (x.reshape(-1, *x.shape[-2:]) for x in points)
    moved = [x.rows[1:].reshape(count - 1, -1, *x.shape[-2:]) if isinstance(x, Dual) else None for x in inputs]
    mask = _expanded(attn_mask, is_causal, (*heads, q.shape[1], k.shape[1]), q)
    for block, queries in _blocks(q.shape[:2], k.shape[1], q.device.type):
        bias = None if mask is None else mask[torch.unravel_index(_range(block), heads)][:, queries]
        at = q[block, queries] * scale, k[block], v[block]
        d_query, d_key, d_value = moved
        tangents = (
            None if d_query is None else d_query[:, block, queries] * scale,
            None if d_key is None else d_key[:, block],
            None if d_value is None else d_value[:, block],
        )
        _block(at, tangents, bias, rows[1:, block, queries])
    return Dual(rows.unflatten(1, heads))


def _range(block: slice) -> Tensor:
    return torch.arange(block.start, block.stop)


def _blocks(queries: tuple[int, ...], sources: int, device: str) -> Iterator[tuple[slice, slice]]:
    """Yield slices of heads and of queries: whole heads, or parts of a head that is too large for a block."""
    heads, tokens = queries
    entries = BLOCK_ENTRIES.get(device, DEVICE_BLOCK_ENTRIES)
    step = max(1, entries // max(1, tokens * sources))
    part = tokens if step > 1 else min(tokens, max(64, entries // sources))
    for head in range(0, heads, step):
        for token in range(0, tokens, part):
            yield slice(head, min(head + step, heads)), slice(token, token + part)


def _expanded(mask: Tensor | None, is_causal: bool, shape: tuple[int, ...], like: Tensor) -> Tensor | None:
    """Return the mask that is added to S, as a view of the given shape: 0 for visible keys, -inf for others."""
    if is_causal:
        mask = torch.ones(shape[-2:], dtype=torch.bool, device=like.device).tril()
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=like.dtype).masked_fill(~mask, -torch.inf)
    return mask.expand(shape)


def _block(
    points: tuple[Tensor, Tensor, Tensor],
    tangents: tuple[Tensor | None, Tensor | None, Tensor | None],
    bias: Tensor | None,
    rows: Tensor,
) -> None:
    """Compute the tangents' rows of a block, with one product for dS even if both query and key have tangents."""
    query, key, value = points
    logits = query @ key.mT
    shares = (logits if bias is None else logits + bias).softmax(-1)
    for i, row in enumerate(rows):
        d_query, d_key, d_value = (None if x is None else x[i] for x in tangents)
        left = [x for x in (d_query, None if d_key is None else query) if x is not None]
        right = [x for x in (None if d_query is None else key, d_key) if x is not None]
        row.zero_()
        if left:
            d_logits = torch.cat(left, -1) @ torch.cat(right, -1).mT
            row += torch._softmax_backward_data(d_logits, shares, -1, shares.dtype) @ value
        if d_value is not None:
            row += shares @ d_value


FUNCTIONS[functional.scaled_dot_product_attention] = _attention
