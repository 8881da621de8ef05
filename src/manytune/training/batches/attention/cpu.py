"""Packed attention on CPUs through torch's flash attention, forward and backward, as one operation each.

    out[t] = sum_s softmax_{s in path(t)}(scaling * query[t] . key[s]) value[s]

A batch's rectangles go to torch's flash attention one after the other. Autograd would see a dozen small operations for
each, and torch.compile would end its graph in every layer, since their number changes from batch to batch; here both
see one operation whose inputs are always the same few tensors. Semantics: `packed.py`, and
`tests/reference/one_sequence_a_forward.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakTensorKeyDictionary

from manytune.kernels.opaque import opaque
from manytune.training.batches.layout import Extent, Layout, extents, visible

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default

# Whether the kernels take fewer heads of keys than of queries. Older releases weren't looked at.
_GROUPED = torch.__version__ >= "2.13"  # a TorchVersion: compared by its numbers

# Queries of a call of the kernel, unless it knows itself which keys they don't see: those after the last of them are
# left out. Fewer leave out more and call more often.
_QUERIES = 128


class Problem(NamedTuple):
    """One call of the kernel: some queries of one rectangle's blocks, and the keys that any of them sees.

    Attributes:
        own: The rectangle.
        queries: Which of a block's queries.
        keys: How many of a block's keys, from the first.
        mask: What is added to scores, 0 where a query sees a key and -inf elsewhere; None for the causal mask.
            Shape `(blocks, 1, queries, keys)`.
        normalizers: Where the normalisers are.
    """

    own: Extent
    queries: slice
    keys: int
    mask: Tensor | None
    normalizers: slice


# The problems of the layouts in use, by their query positions: all layers of a model have the same ones.
_PROBLEMS: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def suits(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the kernels take such tensors.

    Args:
        query: Shape `(1, heads, T, dim)`.
        key: Shape `(1, key_heads, T, dim)`.
        value: Shape `(1, key_heads, T, value_dim)`.
    """
    heads_agree = _GROUPED or query.shape[1] == key.shape[1]
    return query.device.type == "cpu" and heads_agree and query.shape[-1] == value.shape[-1]


def attend(
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
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        """The inputs are those of `_forward`."""
        forward = _opaque_forward if torch.compiler.is_compiling() else _forward
        out, *saved = forward(*inputs)
        *_, key_rows, query_positions, key_positions, shapes, slots, ctx.scaling, ctx.window = inputs
        ctx.save_for_backward(*saved, key_rows, query_positions, key_positions, shapes, slots)
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
    attended = torch.empty_like(q)
    normalizers = q.new_empty(q.shape[0] * q.shape[1], dtype=_normalizer_dtype(q))
    for problem in _problems(query_positions, key_positions, shapes, window, q):
        queries, keys, values = _operands(problem, q, k, v)
        result, normalizer = _flash(
            queries, keys, values, 0.0, problem.mask is None, attn_mask=problem.mask, scale=scaling
        )
        problem.own.queries_of(attended)[:, problem.queries] = result.transpose(1, 2)
        normalizers[problem.normalizers] = normalizer.flatten()
    return attended.index_select(0, slots), q, k, v, attended, normalizers


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
    grad_slots = torch.zeros_like(q).index_copy_(0, slots, grad)  # zero where a slot is padding
    grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for problem in _problems(query_positions, key_positions, shapes, window, q):
        own = problem.own
        queries, keys, values = _operands(problem, q, k, v)
        found_q, found_k, found_v = _flash_backward(
            own.queries_of(grad_slots)[:, problem.queries].transpose(1, 2),
            queries,
            keys,
            values,
            own.queries_of(attended)[:, problem.queries].transpose(1, 2),
            normalizers[problem.normalizers].view(own.blocks, q.shape[1], -1),
            0.0,
            problem.mask is None,
            attn_mask=problem.mask,
            scale=scaling,
        )
        own.queries_of(grad_q)[:, problem.queries] = found_q.transpose(1, 2)
        own.keys_of(grad_k)[:, : problem.keys] += found_k.transpose(1, 2)
        own.keys_of(grad_v)[:, : problem.keys] += found_v.transpose(1, 2)
    rows = len(grad)
    return (
        grad_q.index_select(0, slots),
        _summed(grad_k, key_rows, rows),
        _summed(grad_v, key_rows, rows),
    )


def _operands(problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values as the kernel takes them: (blocks, heads, queries or keys, dim)."""
    return (
        problem.own.queries_of(q)[:, problem.queries].transpose(1, 2),
        problem.own.keys_of(k)[:, : problem.keys].transpose(1, 2),
        problem.own.keys_of(v)[:, : problem.keys].transpose(1, 2),
    )


def _summed(grad: Tensor, rows: Tensor, count: int) -> Tensor:
    """The sum of what each slot found for a row."""
    # The gradient of a gather runs in parallel on CPU; adding at indices does not.
    summed: Tensor = torch.ops.aten.embedding_dense_backward(grad.flatten(1), rows, count, -1, False)
    return summed.view(count, *grad.shape[1:])


def _normalizer_dtype(query: Tensor) -> torch.dtype:
    return torch.float64 if query.dtype == torch.float64 else torch.float32


def _problems(
    query_positions: Tensor, key_positions: Tensor, shapes: Tensor, window: int | None, q: Tensor
) -> list[Problem]:
    """The kernel's calls for a layout, for a number of heads and a dtype."""
    known = _PROBLEMS.setdefault(query_positions, {})
    kind = (window, q.shape[1], q.dtype)
    if kind not in known:
        known[kind] = list(_split(query_positions, key_positions, shapes, window, q.shape[1], q.dtype))
    problems: list[Problem] = known[kind]
    return problems


def _split(
    query_positions: Tensor,
    key_positions: Tensor,
    shapes: Tensor,
    window: int | None,
    heads: int,
    dtype: torch.dtype,
) -> Iterator[Problem]:
    normalizer = 0
    for own in extents(shapes):
        queries, keys = own.queries_of(query_positions), own.keys_of(key_positions)
        seen = visible(queries, keys, own.square, window)
        count = queries.shape[1]
        step = count if seen is None else _QUERIES
        for start in range(0, count, step):
            part = slice(start, min(start + step, count))
            last = keys.shape[1] if seen is None else int(queries[:, part].max()) + 1
            mask = None
            if seen is not None:
                unseen = ~seen[:, :, part, :last]
                mask = torch.zeros(unseen.shape, dtype=dtype).masked_fill_(unseen, float("-inf"))
            end = normalizer + own.blocks * heads * (part.stop - start)
            yield Problem(own, part, last, mask, slice(normalizer, end))
            normalizer = end


def _forward_shapes(
    query: Tensor, key: Tensor, value: Tensor, query_rows: Tensor, key_rows: Tensor, *rest: object
) -> tuple[Tensor, ...]:
    slots, keys = query_rows.shape[0], key_rows.shape[0]
    _, heads, dim = query.shape
    return (
        query.new_empty(query.shape),
        query.new_empty(slots, heads, dim),
        key.new_empty(keys, *key.shape[1:]),
        value.new_empty(keys, *value.shape[1:]),
        query.new_empty(slots, heads, dim),
        query.new_empty(slots * heads, dtype=_normalizer_dtype(query)),
    )


def _backward_shapes(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: object) -> tuple[Tensor, ...]:
    rows = grad.shape[0]
    return grad.new_empty(grad.shape), k.new_empty(rows, *k.shape[1:]), v.new_empty(rows, *v.shape[1:])


_LAYOUT = (
    "Tensor query_positions, Tensor key_positions, Tensor shapes, Tensor slots, float scaling, SymInt? window"
)
_opaque_forward = opaque(
    "packed_attention(Tensor query, Tensor key, Tensor value, Tensor query_rows, Tensor key_rows, "
    f"{_LAYOUT}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _forward_shapes,
)
_opaque_backward = opaque(
    "packed_attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor attended, Tensor normalizers, "
    f"Tensor key_rows, {_LAYOUT}) -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_shapes,
)
