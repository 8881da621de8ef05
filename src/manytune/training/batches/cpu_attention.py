"""Packed attention on CPUs, forward and backward, as one operation each.

    out[t] = sum_s softmax_{s in path(t)}(scaling * query[t] . key[s]) value[s]

A batch's rectangles go to torch's flash attention one after the other. Autograd would see a dozen small operations for
each, and torch.compile would end its graph in every layer, since their number changes from batch to batch; here both
see one operation whose inputs are always the same few tensors. Semantics: `attention.py`, and
`tests/reference/one_sequence_a_forward.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakTensorKeyDictionary

from manytune.training.batches.layout import Extent, Layout, extents, visible

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default

# The scores' masks of the layouts in use, by their query positions: all layers of a model need the same ones.
_MASKS: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def suits(query: Tensor, value: Tensor) -> bool:
    """Whether the kernels take such tensors."""
    return query.device.type == "cpu" and query.shape[-1] == value.shape[-1]


def cpu_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scaling: float, window: int | None
) -> Tensor:
    """Attention of packed rows, each over its own sequence.

    Args:
        query: Shape `(T, heads, dim)`.
        key: Shape `(T, key_heads, dim)`, where `key_heads` divides `heads`.
        value: Shape `(T, key_heads, dim)`.
        layout: The batch's.
        scaling: Factor of the scores.
        window: How many last positions a query sees, itself included; None for all.

    Returns:
        Shape `(T, heads, dim)`.
    """
    result: Tensor = _Attention.apply(  # type: ignore[no-untyped-call]
        query,
        key,
        value,
        layout.query_rows,
        layout.key_rows,
        layout.query_positions,
        layout.key_positions,
        layout.shapes,
        layout.slots,
        scaling,
        window,
    )
    return result


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        query_rows: Tensor,
        key_rows: Tensor,
        query_positions: Tensor,
        key_positions: Tensor,
        shapes: Tensor,
        slots: Tensor,
        scaling: float,
        window: int | None,
    ) -> Tensor:
        forward = _opaque_forward if torch.compiler.is_compiling() else _forward
        out, *saved = forward(
            query,
            key,
            value,
            query_rows,
            key_rows,
            query_positions,
            key_positions,
            shapes,
            slots,
            scaling,
            window,
        )
        ctx.save_for_backward(*saved, key_rows, query_positions, key_positions, shapes, slots)
        ctx.scaling, ctx.window = scaling, window
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        backward: Any = _opaque_backward if torch.compiler.is_compiling() else _backward
        grads = backward(grad.contiguous(), *ctx.saved_tensors, ctx.scaling, ctx.window)
        return (*grads, *[None] * 8)


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_rows: Tensor,
    key_rows: Tensor,
    query_positions: Tensor,
    key_positions: Tensor,
    shapes: Tensor,
    slots: Tensor,
    scaling: float,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The result, and what the backward pass reads: queries, keys, values and results slot by slot, and normalisers."""
    q, k, v = (
        query.index_select(0, query_rows),
        key.index_select(0, key_rows),
        value.index_select(0, key_rows),
    )
    masks = _masks(query_positions, key_positions, shapes, window, query.dtype)
    results, normalizers = [], []
    for own, mask in zip(extents(shapes), masks, strict=True):
        result, normalizer = _flash(
            own.queries_of(q).transpose(1, 2),
            own.keys_of(k).transpose(1, 2),
            own.keys_of(v).transpose(1, 2),
            0.0,
            mask is None,
            attn_mask=mask,
            scale=scaling,
        )
        results.append(result.transpose(1, 2).flatten(0, 1))
        normalizers.append(normalizer.flatten())
    attended = torch.cat(results)
    return attended.index_select(0, slots), q, k, v, attended, torch.cat(normalizers)


def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attended: Tensor,
    normalizers: Tensor,
    key_rows: Tensor,
    query_positions: Tensor,
    key_positions: Tensor,
    shapes: Tensor,
    slots: Tensor,
    scaling: float,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of query, key and value."""
    heads = q.shape[1]
    grad_slots = torch.zeros_like(q).index_copy_(0, slots, grad)  # zero where a slot is padding
    masks = _masks(query_positions, key_positions, shapes, window, q.dtype)
    grads: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    for own, mask in zip(extents(shapes), masks, strict=True):
        size = slice(own.queries.start * heads, own.queries.stop * heads)
        gradients = _flash_backward(
            own.queries_of(grad_slots).transpose(1, 2),
            own.queries_of(q).transpose(1, 2),
            own.keys_of(k).transpose(1, 2),
            own.keys_of(v).transpose(1, 2),
            own.queries_of(attended).transpose(1, 2),
            normalizers[size].view(own.blocks, heads, -1),
            0.0,
            mask is None,
            attn_mask=mask,
            scale=scaling,
        )
        for column, found in zip(grads, gradients, strict=True):
            column.append(found.transpose(1, 2).flatten(0, 1))
    rows = len(grad)
    return (
        torch.cat(grads[0]).index_select(0, slots),
        _summed(grads[1], key_rows, rows),
        _summed(grads[2], key_rows, rows),
    )


def _summed(grads: list[Tensor], rows: Tensor, count: int) -> Tensor:
    """The sum of what each slot found for a row."""
    flat = torch.cat(grads)
    # The gradient of a gather runs in parallel on CPU; adding at indices does not.
    summed: Tensor = torch.ops.aten.embedding_dense_backward(flat.flatten(1), rows, count, -1, False)
    return summed.view(count, *flat.shape[1:])


def _masks(
    query_positions: Tensor, key_positions: Tensor, shapes: Tensor, window: int | None, dtype: torch.dtype
) -> list[Tensor | None]:
    """What is added to each rectangle's scores: 0 where a query sees a key, else -inf; None for the causal mask."""
    known = _MASKS.setdefault(query_positions, {})
    if (window, dtype) not in known:
        known[window, dtype] = [
            _mask(own, query_positions, key_positions, window, dtype) for own in extents(shapes)
        ]
    masks: list[Tensor | None] = known[window, dtype]
    return masks


def _mask(
    own: Extent, query_positions: Tensor, key_positions: Tensor, window: int | None, dtype: torch.dtype
) -> Tensor | None:
    seen = visible(own.queries_of(query_positions), own.keys_of(key_positions), own.square, window)
    return None if seen is None else torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, float("-inf"))


# The same, as torch.compile sees them: two operations that it doesn't look into.
_LIBRARY = torch.library.Library("manytune", "FRAGMENT")
_INPUTS = (
    "Tensor query_positions, Tensor key_positions, Tensor shapes, Tensor slots, float scaling, SymInt? window"
)
_LIBRARY.define(
    "packed_attention(Tensor query, Tensor key, Tensor value, Tensor query_rows, Tensor key_rows, "
    f"{_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_LIBRARY.define(
    "packed_attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor attended, Tensor normalizers, "
    f"Tensor key_rows, {_INPUTS}) -> (Tensor, Tensor, Tensor)"
)
_LIBRARY.impl("packed_attention", _forward, "CPU")
_LIBRARY.impl("packed_attention_backward", _backward, "CPU")
_opaque_forward = torch.ops.manytune.packed_attention.default
_opaque_backward = torch.ops.manytune.packed_attention_backward.default


@torch.library.register_fake("manytune::packed_attention", lib=_LIBRARY)  # type: ignore[untyped-decorator]
def _(
    query: Tensor, key: Tensor, value: Tensor, query_rows: Tensor, key_rows: Tensor, *rest: object
) -> tuple[Tensor, ...]:
    slots, keys = query_rows.shape[0], key_rows.shape[0]
    _, heads, dim = query.shape
    normalizer = torch.float64 if query.dtype == torch.float64 else torch.float32
    return (
        query.new_empty(query.shape),
        query.new_empty(slots, heads, dim),
        key.new_empty(keys, *key.shape[1:]),
        value.new_empty(keys, *value.shape[1:]),
        query.new_empty(slots, heads, dim),
        query.new_empty(slots * heads, dtype=normalizer),
    )


@torch.library.register_fake("manytune::packed_attention_backward", lib=_LIBRARY)  # type: ignore[untyped-decorator]
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: object) -> tuple[Tensor, ...]:
    rows = grad.shape[0]
    return grad.new_empty(grad.shape), k.new_empty(rows, *k.shape[1:]), v.new_empty(rows, *v.shape[1:])
