"""Packed attention on CPUs through the C++ kernel, forward and backward, as one operation each.

    out[t] = sum_s softmax_{s in path(t)}(scaling * query[t] . key[s]) value[s]

Nothing is padded, and no key after a tile's last query is computed. Semantics: `packed.py`, and
`tests/reference/one_sequence_a_forward.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from manytune.kernels import attention
from manytune.kernels.attention import Visibility
from manytune.kernels.build import load_kernels, ready
from manytune.kernels.opaque import opaque
from manytune.training.batches.layout import Layout


def suits(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the kernel is there and takes such tensors.

    Args:
        query: Shape `(1, heads, T, dim)`.
        key: Shape `(1, key_heads, T, dim)`.
        value: Shape `(1, key_heads, T, value_dim)`.
    """
    return ready() and attention.suits(query, key, value)


def attend(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scaling: float, window: int | None
) -> Tensor:
    """Attention of packed rows, each over its own sequence; arguments and result are those of `cpu.attend`."""
    result: Tensor = _Attention.apply(  # type: ignore[no-untyped-call]
        query, key, value, layout.key_rows, layout.blocks, scaling, window
    )
    return result


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        """The inputs are those of `_forward`."""
        forward = _opaque_forward if torch.compiler.is_compiling() else _forward
        out, normalizers = forward(*inputs)
        query, key, value, paths, blocks, ctx.scaling, ctx.window = inputs
        ctx.save_for_backward(query, key, value, out, normalizers, paths, blocks)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        backward: Any = _opaque_backward if torch.compiler.is_compiling() else _backward
        grads = backward(grad, *ctx.saved_tensors, ctx.scaling, ctx.window)
        return (*grads, *[None] * 4)


def _forward(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return attention.forward(load_kernels().loaded(), query, key, value, Visibility(*rest))


def _backward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    grad, query, key, value, out, normalizers, *rest = inputs
    library, visibility = load_kernels().for_gradients("attention"), Visibility(*rest)
    return attention.backward(library, grad, query, key, value, out, normalizers, visibility)


def _forward_shapes(query: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
    return query.new_empty(query.shape), query.new_empty(query.shape[:2])


def _backward_shapes(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: object
) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in (query, key, value))


_QKV = "Tensor query, Tensor key, Tensor value"
_PLAN = "Tensor paths, Tensor blocks, float scaling, SymInt? window"
_opaque_forward = opaque(f"kernel_attention({_QKV}, {_PLAN}) -> (Tensor, Tensor)", _forward, _forward_shapes)
_opaque_backward = opaque(
    f"kernel_attention_backward(Tensor grad, {_QKV}, Tensor out, Tensor normalizers, {_PLAN}) "
    "-> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_shapes,
)
