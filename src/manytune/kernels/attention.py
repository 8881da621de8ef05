"""Calls of the C++ kernel for attention of packed rows. Shapes and semantics: `sources/attention.cpp`."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from manytune.kernels.operands import LANES, is_taken, pointer

_NO_WINDOW = 1 << 40  # more than any sequence fills


class Visibility(NamedTuple):
    """Which rows each query sees, and how its scores are scaled.

    Attributes:
        paths: The blocks' paths, one after the other, as rows of the query. Shape `(keys,)`, int64.
        blocks: Where a block's path starts in `paths`, the first position whose query is the block's own, and the
            path's length. Each row is one block's own. Shape `(blocks, 3)`, int64.
        scaling: Factor of the scores.
        window: How many last positions a query sees, itself included; None for all.
    """

    paths: Tensor
    blocks: Tensor
    scaling: float
    window: int | None


def suits(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the kernel takes such tensors.

    Args:
        query: Shape `(..., dim)`, as key and value.
        key: As query.
        value: As query.
    """
    dim = query.shape[-1]
    return is_taken(query, key, value) and key.shape[-1] == value.shape[-1] == dim and dim % LANES == 0


def forward(
    library: ctypes.CDLL,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visibility: Visibility,
) -> tuple[Tensor, Tensor]:
    """Attention of each query over its path.

    Args:
        library: The compiled kernels.
        query: Shape `(T, heads, dim)`.
        key: Shape `(T, key_heads, dim)`, where `key_heads` divides `heads`.
        value: Shape `(T, key_heads, dim)`.
        visibility: Which rows each query sees.

    Returns:
        The result, of shape `(T, heads, dim)`, and each row's logarithm of the sum of exponentiated scores, of shape
        `(T, heads)`.
    """
    query, key, value = map(_with_contiguous_heads, (query, key, value))
    out = query.new_empty(query.shape)
    normalizers = query.new_empty(query.shape[:2])
    library.packed_attention_forward(
        *map(pointer, (query, key, value)),
        _strides(query, key, value),
        *map(pointer, (visibility.paths, visibility.blocks)),
        _sizes(query, key, visibility),
        ctypes.c_float(visibility.scaling),
        *map(pointer, (out, normalizers)),
        torch.get_num_threads(),
    )
    return out, normalizers


def backward(
    library: ctypes.CDLL,
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    normalizers: Tensor,
    visibility: Visibility,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of query, key and value.

    Args:
        library: The compiled kernels.
        grad: Of the result. Shape `(T, heads, dim)`.
        query: As `forward` took it.
        key: As `forward` took it.
        value: As `forward` took it.
        out: What `forward` gave.
        normalizers: What `forward` gave.
        visibility: As `forward` took it.
    """
    query, key, value = map(_with_contiguous_heads, (query, key, value))
    grad, paths = grad.contiguous(), visibility.paths
    slots = query.new_empty(2, len(paths), *key.shape[1:])
    grad_query, grad_key, grad_value = (x.new_empty(x.shape) for x in (query, key, value))
    library.packed_attention_backward(
        *map(pointer, (grad, query, key, value)),
        _strides(query, key, value),
        pointer(paths),
        ctypes.c_int64(len(paths)),
        pointer(visibility.blocks),
        _sizes(query, key, visibility),
        ctypes.c_float(visibility.scaling),
        *map(pointer, (out, normalizers)),
        ctypes.c_int64(len(query)),
        *map(pointer, (slots, grad_query, grad_key, grad_value)),
        torch.get_num_threads(),
    )
    return grad_query, grad_key, grad_value


def _with_contiguous_heads(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _strides(*tensors: Tensor) -> ctypes.Array[ctypes.c_int64]:
    strides = [stride for x in tensors for stride in x.stride()[:2]]
    return (ctypes.c_int64 * len(strides))(*strides)


def _sizes(query: Tensor, key: Tensor, visibility: Visibility) -> ctypes.Array[ctypes.c_int64]:
    _, heads, dim = query.shape
    sizes = (len(visibility.blocks), heads, key.shape[1], dim, visibility.window or _NO_WINDOW)
    return (ctypes.c_int64 * len(sizes))(*sizes)
