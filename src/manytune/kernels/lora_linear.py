"""A frozen linear layer with its LoRA update as one autograd step, the update through the C++ kernel.

    y = x Wᵀ + b + s · x Aᵀ Bᵀ            (LoRA, arXiv 2106.09685)

The base's products are `products.product`'s, and what LoRA adds to them takes one pass over memory a direction
(`low_rank.py`, which calls the kernel and knows no autograd). For float32 on CPUs, without dropout and with a frozen
base; `methods/lora/fused.py` computes the same layer everywhere else.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from manytune.kernels import low_rank
from manytune.kernels.build import load_kernels, ready
from manytune.kernels.opaque import opaque
from manytune.kernels.products import is_fast, product


def suits(x: Tensor, weight: Tensor, lora_a: Tensor, lora_b: Tensor) -> bool:
    """Whether the kernel is there and takes such operands."""
    return (
        ready()
        and is_fast(x, weight)
        and not weight.requires_grad
        and low_rank.suits(x, weight, lora_a, lora_b)
    )


def lora_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, lora_a: Tensor, lora_b: Tensor, scaling: float
) -> Tensor:
    """`x Wᵀ + b + s · x Aᵀ Bᵀ`, with gradients for x, b, A and B.

    Args:
        x: (..., in).
        weight: (out, in), frozen; a transposed view is fine.
        bias: (out,), or None.
        lora_a: (r, in).
        lora_b: (out, r).
        scaling: s.

    Returns:
        (..., out).
    """
    result: Tensor = _LoraLinear.apply(x, weight, bias, lora_a, lora_b, scaling)  # type: ignore[no-untyped-call]
    return result


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        lora_a: Tensor,
        lora_b: Tensor,
        scaling: float,
    ) -> Tensor:
        forward = _opaque_forward if torch.compiler.is_compiling() else _forward
        flat = x.reshape(-1, x.shape[-1])  # (N, in)
        out, low = forward(flat, weight, bias, lora_a, lora_b, scaling)
        ctx.save_for_backward(
            flat if ctx.needs_input_grad[3] else None,
            low if ctx.needs_input_grad[4] else None,
            weight,
            lora_a,
            lora_b,
        )
        ctx.scaling = scaling
        ctx.x_shape = x.shape
        return out.view(*x.shape[:-1], out.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        backward: Any = _opaque_backward if torch.compiler.is_compiling() else _backward
        flat, low, weight, lora_a, lora_b = ctx.saved_tensors
        needs_x, _, needs_bias, needs_a, needs_b = ctx.needs_input_grad[:5]
        grad = grad.reshape(-1, grad.shape[-1])  # (N, out)
        grad_x, grad_a, grad_b = backward(grad, flat, low, weight, lora_a, lora_b, ctx.scaling, needs_x)
        return (
            grad_x.view(ctx.x_shape) if needs_x else None,
            None,
            grad.sum(0) if needs_bias else None,
            grad_a if needs_a else None,
            grad_b if needs_b else None,
            None,
        )


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, lora_a: Tensor, lora_b: Tensor, scaling: float
) -> tuple[Tensor, Tensor]:
    """The layer's result, and x Aᵀ of shape (N, r)."""
    out = product(x, weight, bias)
    return out, low_rank.forward(load_kernels().loaded(), x, lora_a, lora_b, out, scaling)


def _backward(
    grad: Tensor,
    x: Tensor | None,
    low: Tensor | None,
    weight: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    scaling: float,
    needs_x: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, A and B; one that isn't needed is empty."""
    grad_x = product(grad, weight.t()) if needs_x else None
    library = load_kernels().for_gradients("LoRA")
    grad_a, grad_b = low_rank.backward(library, grad, x, low, lora_a, lora_b, grad_x, scaling)
    # An operation may not give one tensor twice.
    return (
        grad.new_empty(0) if grad_x is None else grad_x,
        grad.new_empty(0) if grad_a is None else grad_a,
        grad.new_empty(0) if grad_b is None else grad_b,
    )


def _forward_shapes(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0], weight.shape[0]), x.new_empty(x.shape[0], a.shape[0])


def _backward_shapes(
    grad: Tensor,
    x: Tensor | None,
    low: Tensor | None,
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    scaling: float,
    needs_x: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        grad.new_empty((grad.shape[0], weight.shape[1]) if needs_x else 0),
        a.new_empty(0 if x is None else a.shape),
        b.new_empty(0 if low is None else b.shape),
    )


_opaque_forward = opaque(
    "lora_linear(Tensor x, Tensor weight, Tensor? bias, Tensor a, Tensor b, float scaling) -> (Tensor, Tensor)",
    _forward,
    _forward_shapes,
)
_opaque_backward = opaque(
    "lora_linear_backward(Tensor grad, Tensor? x, Tensor? low, Tensor weight, Tensor a, Tensor b, float scaling, "
    "bool needs_x) -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_shapes,
)
