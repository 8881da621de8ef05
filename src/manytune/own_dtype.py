"""Layers that multiply in their weights' half precision and give float32.

The hidden states around such a layer stay in float32: it rounds its input to the dtype of its weight, multiplies, and
gives the product in float32, so that what is added to it afterwards isn't rounded away. `model/activations.py` lets a
model's layers run in these forms, and layers with adapters recognise them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

HALF = (torch.float16, torch.bfloat16)
"""The dtypes that round hidden states too coarsely."""


def plain_in_own_dtype(layer: nn.Module, x: Tensor) -> Tensor:
    """`forward` of `torch.nn.Linear` or transformers' `Conv1D`: x Wᵀ in W's dtype, given in float32.

    A bias in float32, which trains, is added there.
    """
    weight: Tensor = layer.weight  # type: ignore[assignment]
    bias: Tensor | None = layer.bias  # type: ignore[assignment]
    x = x.to(weight.dtype)
    if bias is None or bias.dtype == weight.dtype:
        found: Tensor = type(layer).forward(layer, x)
        return found.to(torch.float32)
    found = functional.linear(x, weight if isinstance(layer, nn.Linear) else weight.t())
    return found.to(torch.float32) + bias


def in_own_dtype(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """`forward` of any layer with a matrix: floating-point inputs in its dtype, results in float32."""
    dtype = matrix_dtype(layer)
    assert dtype is not None, "it was chosen for its matrix"
    wide = {
        name: parameter.to(dtype)
        for name, parameter in layer._parameters.items()
        if parameter is not None and parameter.dtype == torch.float32
    }
    if wide:  # a bias that trains; this function is called once more, with the rounded one
        return functional_call(layer, wide, args, kwargs)
    found = type(layer).forward(layer, *cast_floats(args, dtype), **cast_floats(kwargs, dtype))
    return cast_floats(found, torch.float32)


def linear_in_bfloat16(layer: nn.Linear, x: Tensor) -> Tensor:
    """`forward` of `torch.nn.Linear` with float32 weights: the product alone in bfloat16, as under autocast.

    Weights and bias are rounded for the call. Their gradients arrive in float32.
    """
    bias = None if layer.bias is None else layer.bias.to(torch.bfloat16)
    return functional.linear(x.to(torch.bfloat16), layer.weight.to(torch.bfloat16), bias).to(torch.float32)


def conv1d_in_bfloat16(layer: nn.Module, x: Tensor) -> Tensor:
    """The same for transformers' `Conv1D`, which stores its weight transposed."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    bias: Tensor = layer.bias  # type: ignore[assignment]
    half = torch.bfloat16
    return functional.linear(x.to(half), weight.t().to(half), bias.to(half)).to(torch.float32)


def runs_in_own_dtype(layer: nn.Module) -> bool:
    """Whether a layer runs in one of the first two forms at present."""
    own = getattr(layer.__dict__.get("forward"), "__func__", None)
    return own is plain_in_own_dtype or own is in_own_dtype


def matrix_dtype(layer: nn.Module) -> torch.dtype | None:
    """The half precision of a layer's own matrices, if they have one; None for norms and for wider weights."""
    for parameter in layer._parameters.values():
        if parameter is not None and parameter.dim() > 1 and parameter.dtype in HALF:
            return parameter.dtype
    return None


def cast_floats(value: Any, dtype: torch.dtype) -> Any:
    """Floating-point tensors in a dtype, within tuples, lists and dictionaries; all else as it is."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if type(value) in (tuple, list):
        return type(value)(cast_floats(one, dtype) for one in value)
    if type(value) is dict:
        return {key: cast_floats(one, dtype) for key, one in value.items()}
    return value
