"""Products with a linear layer's weight, by the fastest library that torch brings.

In float32 on a CPU torch multiplies with BLAS. Its other library, oneDNN, takes a fifth to a third less time for that
on some processors, and adds up in another order, so its results differ by rounding. It is used inside `fast_products`
alone: while training, where each step's time counts. Elsewhere a layer gives its usual bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from manytune.kernels.build import prepare_kernels
from manytune.kernels.opaque import opaque

_AVAILABLE = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
_LINEAR: Any = torch.ops.mkldnn._linear_pointwise.default if _AVAILABLE else None

_fast = False


@contextmanager
def fast_products(model: nn.Module) -> Iterator[None]:
    """Multiply through oneDNN, where it can be, in the model's linear layers and wherever `product` is called.

    LoRA's own products then go through the C++ kernels, if there are any (`kernels/`).

    Mutates: the linear layers' class, until the block ends.
    """
    global _fast
    prepare_kernels(model)
    before = _fast
    layers = [(module, type(module)) for module in model.modules() if type(module) in _FAST]
    _fast = True
    # Another class rather than another `forward` in each: torch.compile makes one form for all layers of a class.
    for layer, kind in layers:
        layer.__class__ = _FAST[kind]
    try:
        yield
    finally:
        _fast = before
        for layer, kind in layers:
            layer.__class__ = kind


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Give x Wᵀ + b, without a gradient.

    Args:
        x: (N, in).
        weight: (out, in); a transposed view is fine.
        bias: (out,), or None.

    Returns:
        (N, out).
    """
    if not is_fast(x, weight):
        return functional.linear(x, weight, bias)
    found: Tensor = _opaque(x, weight, bias) if torch.compiler.is_compiling() else _onednn(x, weight, bias)
    return found


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    found: Tensor = _LINEAR(x.contiguous(), weight, bias, "none", [], "")
    return found


# torch.compile's own form of that operation takes only weights that never change.
_opaque = opaque(
    "product(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    _onednn,
    lambda x, weight, bias: x.new_empty(x.shape[0], weight.shape[0]),
)


def is_fast(x: Tensor, weight: Tensor) -> bool:
    """Whether a product of these goes through oneDNN: inside `fast_products`, for plain float32 on a CPU."""
    return (
        _fast
        and _AVAILABLE
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and type(weight) in (Tensor, nn.Parameter)  # others may hold something else than numbers in rows
        and not torch.is_autocast_enabled("cpu")
    )


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])  # (N, in)
        ctx.save_for_backward(flat if ctx.needs_input_grad[1] else None, weight)
        ctx.x_shape = x.shape
        out = product(flat, weight, bias)
        # A view couldn't be written to, which the head's loss does with its logits.
        return out if x.ndim == 2 else out.view(*x.shape[:-1], out.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        flat, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        grad = grad.reshape(-1, grad.shape[-1])  # (N, out)
        return (
            product(grad, weight.t()).view(ctx.x_shape) if needs_x else None,
            # BLAS is as fast here: the sum is over the rows.
            grad.t() @ flat if needs_weight else None,
            grad.sum(0) if needs_bias else None,
        )


class _FastLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        if not is_fast(input, self.weight):
            return super().forward(input)
        result: Tensor = _Linear.apply(input, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return result


class _FastConv1D(Conv1D):
    def forward(self, x: Tensor) -> Tensor:
        if not is_fast(x, self.weight):
            return super().forward(x)  # type: ignore[no-any-return, no-untyped-call]
        result: Tensor = _Linear.apply(x, self.weight.t(), self.bias)  # type: ignore[no-untyped-call]
        return result


_FAST: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: _FastLinear, Conv1D: _FastConv1D}

#: Layers that hold a plain weight and bias and compute x Wᵀ + b.
PLAIN = (*_FAST, *_FAST.values())
