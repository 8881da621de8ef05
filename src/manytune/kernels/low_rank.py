"""Calls of the C++ kernel for low-rank updates, forward and backward. Formulas: `sources/low_rank.cpp`."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from manytune.kernels.operands import LANES, is_taken, pointer

# At this rank the kernel takes 0.85 of the time of a library's products (benchmarks/cpu_kernels.py), at 8 half.
_LARGEST_RANK = 32


def suits(x: Tensor, weight: Tensor, a: Tensor, b: Tensor) -> bool:
    """Whether the kernel takes such tensors.

    Args:
        x: Shape `(N, in)`.
        weight: Shape `(out, in)`.
        a: Shape `(r, in)`.
        b: Shape `(out, r)`.
    """
    return (
        is_taken(x, weight, a, b)
        and all(size % LANES == 0 for size in weight.shape)
        and a.shape[0] <= _LARGEST_RANK
    )


def forward(library: ctypes.CDLL, x: Tensor, a: Tensor, b: Tensor, y: Tensor, scaling: float) -> Tensor:
    """Add s x Aᵀ Bᵀ to y.

    Args:
        library: The compiled kernels.
        x: Shape `(N, in)`.
        a: Shape `(r, in)`.
        b: Shape `(out, r)`.
        y: Shape `(N, out)`, contiguous. Added to.
        scaling: s.

    Returns:
        x Aᵀ, of shape `(N, r)`.
    """
    x, a, b = x.contiguous(), a.contiguous(), b.contiguous()
    low = x.new_empty(len(x), len(a))
    pointers = map(pointer, (x, a, b, low, y))
    library.low_rank_forward(*pointers, *_sizes(x, a, b), ctypes.c_float(scaling), torch.get_num_threads())
    return low


def backward(
    library: ctypes.CDLL,
    grad: Tensor,
    x: Tensor | None,
    low: Tensor | None,
    a: Tensor,
    b: Tensor,
    grad_x: Tensor | None,
    scaling: float,
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of A and B; the update's part of x's gradient is added.

    Args:
        library: The compiled kernels.
        grad: Of y. Shape `(N, out)`.
        x: Shape `(N, in)`; None if A's gradient isn't needed.
        low: What `forward` gave; None if B's gradient isn't needed.
        a: Shape `(r, in)`.
        b: Shape `(out, r)`.
        grad_x: Shape `(N, in)`, contiguous. Added to. None if it isn't needed.
        scaling: s.
    """
    grad, a, b = grad.contiguous(), a.contiguous(), b.contiguous()
    x, low = (None if t is None else t.contiguous() for t in (x, low))
    grad_a = None if x is None else torch.empty_like(a)
    grad_b = None if low is None else torch.empty_like(b)
    pointers = map(pointer, (grad, x, low, a, b, grad_x, grad_a, grad_b))
    library.low_rank_backward(
        *pointers, *_sizes(grad, a, b), ctypes.c_float(scaling), torch.get_num_threads()
    )
    return grad_a, grad_b


def _sizes(rows: Tensor, a: Tensor, b: Tensor) -> tuple[ctypes.c_int64, ...]:
    sizes = (len(rows), a.shape[1], len(b), len(a))
    return tuple(map(ctypes.c_int64, sizes))
