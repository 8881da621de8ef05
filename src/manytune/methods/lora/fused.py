"""A linear layer with a low-rank update next to it, in one autograd step.

    y = x Wᵀ + b + s · D(x) Aᵀ Bᵀ            (LoRA, arXiv 2106.09685; D is dropout)

Written out with separate operations, the update costs three more passes over tensors of the output's size,
forward alone. Here the base's product is made once and the rank-r product is accumulated into it in place, BA
is never formed, and the backward pass does the same for the gradient of x. While training on a CPU, float32
rank-r products go through a C++ kernel in one pass (`kernels/lora_linear.py`). Semantics:
`tests/reference/lora.py`.

Shapes: x (..., in), W (out, in), b (out,), A (r, in), B (out, r), y (..., out). N is the product of x's
leading sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from manytune.kernels import lora_linear as kernel
from manytune.kernels.products import product


def lora_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_a: Tensor,
    lora_b: Tensor,
    scaling: float,
    *,
    dropout: float = 0.0,
    fast: bool = False,
) -> Tensor:
    """`x Wᵀ + b + s · D(x) Aᵀ Bᵀ`, with gradients for x, b, A and B, and for W where it is asked for.

    x Wᵀ + b is computed in W's dtype and the low-rank part in A's. They are added in the wider of A's and x's, and the
    result has x's: in bfloat16, what a young adapter adds is rounded away there. Under autocast all operands take the
    autocast dtype.

    Args:
        x: (..., in).
        weight: (out, in); a transposed view is fine.
        bias: (out,), or None.
        lora_a: (r, in).
        lora_b: (out, r).
        scaling: s.
        dropout: Probability of zeroing an element of x on the way to A; the rest is scaled by 1 / (1 - p).
        fast: Use the C++ kernel and oneDNN where they suit, whose results differ by rounding.

    Returns:
        (..., out).
    """
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, weight, lora_a, lora_b = (_autocast(t, dtype) for t in (x, weight, lora_a, lora_b))
        bias = None if bias is None else _autocast(bias, dtype)
    keep = None
    if dropout > 0.0:
        # The mask is drawn as torch's own dropout draws it, so that a run agrees with the unfused form. It is held
        # as one byte an element; x after dropout is made again in the backward pass.
        keep = functional.dropout(torch.ones_like(x, dtype=lora_a.dtype), dropout) != 0
    if fast and keep is None and kernel.suits(x, weight, lora_a, lora_b):
        return kernel.lora_linear(x, weight, bias, lora_a, lora_b, scaling)
    result: Tensor = _LoraLinear.apply(  # type: ignore[no-untyped-call]
        x, weight, bias, lora_a, lora_b, scaling, keep, dropout, product if fast else functional.linear
    )
    return result


def _autocast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """What torch's own autocast does to an operand: float64 stays."""
    return tensor if tensor.dtype == torch.float64 else tensor.to(dtype)


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
        keep: Tensor | None,
        dropout: float,
        multiply: Callable[..., Tensor],
    ) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])  # (N, in)
        keep = None if keep is None else keep.reshape(flat.shape)
        low = multiply(_dropped(flat.to(lora_a.dtype), keep, dropout), lora_a)  # (N, r)
        out = multiply(flat.to(weight.dtype), weight, bias).to(flat.dtype)  # (N, out)
        if out.dtype == low.dtype:
            out.addmm_(low, lora_b.t(), alpha=scaling)
        else:
            wide = torch.promote_types(out.dtype, low.dtype)
            out = torch.addmm(out.to(wide), low.to(wide), lora_b.t().to(wide), alpha=scaling).to(out.dtype)
        ctx.save_for_backward(
            flat if ctx.needs_input_grad[1] or ctx.needs_input_grad[3] else None,
            low if ctx.needs_input_grad[4] else None,
            weight,
            lora_a,
            lora_b,
            keep,
        )
        ctx.dropout = dropout
        ctx.multiply = multiply
        ctx.scaling = scaling
        ctx.x_shape = x.shape
        return out.view(*x.shape[:-1], out.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        flat, low, weight, lora_a, lora_b, keep = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, needs_a, needs_b = ctx.needs_input_grad[:5]
        grad = grad.reshape(-1, grad.shape[-1])  # (N, out)
        low_grad_in = grad.to(lora_a.dtype)
        grad_x = grad_weight = grad_bias = grad_a = grad_b = None
        if needs_x or needs_a:
            # B is copied into (r, out) order first: a skinny product reads it along its rows, twice as fast.
            grad_low = (low_grad_in @ lora_b.t().contiguous().t()).mul_(ctx.scaling)  # (N, r)
        if needs_x:
            grad_x = ctx.multiply(grad.to(weight.dtype), weight.t()).to(grad.dtype)  # (N, in)
            if keep is None and grad_x.dtype == grad_low.dtype:
                grad_x.addmm_(grad_low, lora_a)
            else:
                grad_x = (grad_x + _dropped(grad_low @ lora_a, keep, ctx.dropout)).to(grad.dtype)
            grad_x = grad_x.view(ctx.x_shape)
        if needs_a:
            grad_a = grad_low.t() @ _dropped(flat.to(lora_a.dtype), keep, ctx.dropout)
        if needs_b:
            # uᵀ g, then transposed: a quarter of the time of gᵀ u.
            grad_b = (low.t() @ low_grad_in).mul_(ctx.scaling).t().contiguous()
        if needs_weight:
            grad_weight = grad.to(weight.dtype).t() @ flat.to(weight.dtype)
        if needs_bias:
            grad_bias = grad.sum(0).to(weight.dtype)
        return grad_x, grad_weight, grad_bias, grad_a, grad_b, None, None, None, None


def _dropped(values: Tensor, keep: Tensor | None, dropout: float) -> Tensor:
    """What dropout leaves of some values, as torch scales it."""
    if keep is None:
        return values
    return (values * torch.ones((), dtype=values.dtype).div_(1.0 - dropout)).mul_(keep)
