"""Products with a linear layer's weight, by the fastest library that torch brings.

In float32 on a CPU torch multiplies with BLAS. Its other library, oneDNN, takes a fifth to a third less time for that
on some processors, and adds up in another order, so its results differ by rounding. Layers use it only inside
`fast_products`: while training, where each step's time counts; and while a batch has an adapter for each row
(`fast_layers.py`). Elsewhere a layer gives its usual bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from manytune.kernels.build import prepare_kernels
from manytune.kernels.opaque import opaque
from manytune.layer_forwards import own_forwards, replaced_forwards
from manytune.own_dtype import plain_in_own_dtype

_AVAILABLE = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
_LINEAR: Any = torch.ops.mkldnn._linear_pointwise.default if _AVAILABLE else None


@contextmanager
def fast_products(model: nn.Module) -> Iterator[None]:
    """Multiply through oneDNN, where it can be, in the model's linear layers inside the `with` block.

    A layer of another class takes part if that class defines `fast_forward` next to its `forward`: the same result but
    for rounding, for use inside this block. LoRA's goes through the C++ kernels, if there are any. A layer that has a
    `forward` of its own in the instance keeps it.

    Mutates: these layers, until the block ends.
    """
    prepare_kernels(model)
    forwards = {}
    for module in model.modules():
        fast = _fast_form(type(module))
        if fast is not None and "forward" not in module.__dict__:
            forwards[module] = MethodType(fast, module)
    with replaced_forwards(forwards):
        yield


@contextmanager
def usual_products(model: nn.Module) -> Iterator[None]:
    """Leave `fast_products` for the length of a block inside it.

    Mutates: the model's linear layers, until the block ends.
    """
    fast = [
        module
        for module in model.modules()
        if (form := _fast_form(type(module))) is not None
        and getattr(module.__dict__.get("forward"), "__func__", None) is form
    ]
    with own_forwards(fast):
        yield


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer is x Wᵀ + b of its own weight and bias but for rounding: no derived class, no hook."""
    own = layer.__dict__.get("forward")
    return (
        type(layer) in _FAST
        and (own is None or getattr(own, "__func__", None) in (_FAST[type(layer)], plain_in_own_dtype))
        and not (
            layer._forward_hooks
            or layer._forward_pre_hooks
            or layer._backward_hooks
            or layer._backward_pre_hooks
        )
    )


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Give x Wᵀ + b through oneDNN, or as torch does where that can't be; without a gradient.

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
    """Whether `product` of these goes through oneDNN: for plain float32 on a CPU."""
    return (
        _AVAILABLE
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


def _fast_linear(layer: nn.Linear, input: Tensor) -> Tensor:
    if not is_fast(input, layer.weight):
        return nn.Linear.forward(layer, input)
    result: Tensor = _Linear.apply(input, layer.weight, layer.bias)  # type: ignore[no-untyped-call]
    return result


def _fast_conv1d(layer: Conv1D, x: Tensor) -> Tensor:
    if not is_fast(x, layer.weight):
        return Conv1D.forward(layer, x)  # type: ignore[no-any-return]
    result: Tensor = _Linear.apply(x, layer.weight.t(), layer.bias)  # type: ignore[no-untyped-call]
    return result


#: Layers that compute x Wᵀ + b, and their fast forms.
_FAST: dict[type[nn.Module], Callable[..., Tensor]] = {nn.Linear: _fast_linear, Conv1D: _fast_conv1d}


def _fast_form(kind: type[nn.Module]) -> Callable[..., Any] | None:
    """What layers of a class call inside `fast_products`; None if that is their own forward."""
    if kind in _FAST:
        return _FAST[kind]
    # A derived class with a forward of its own computes something else than its parent's fast form.
    definer = next(parent for parent in kind.__mro__ if "forward" in vars(parent))
    return vars(definer).get("fast_forward")
