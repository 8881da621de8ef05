"""Hidden states in float32 over a base in half precision, so that what adapters add isn't rounded away.

A young adapter's update is smaller than half a unit in the last place of the layer's bfloat16 output, so a layer that
adds in bfloat16, as HF PEFT's do, gives what it gave without the adapter; and so does each sum of the residual stream
after it. Here only products with the base's weights are rounded:

    y = float32(W · bfloat16(x)) + s · B A x        h' = h + y, norms, activations and attention: float32
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from manytune.layer_forwards import replaced_forwards
from manytune.methods.tuners.base_layers import Wrapper
from manytune.methods.tuners.saved_modules import ModulesToSaveWrapper
from manytune.own_dtype import (
    HALF,
    cast_floats,
    conv1d_in_bfloat16,
    in_own_dtype,
    linear_in_bfloat16,
    matrix_dtype,
    plain_in_own_dtype,
)

_ROUNDED: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Linear: linear_in_bfloat16,
    Conv1D: conv1d_in_bfloat16,
}


@contextmanager
def float32_activations(model: nn.Module, *, bfloat16_products: bool = False) -> Iterator[None]:
    """Keep hidden states in float32 inside the `with` block, whatever the precision of the base's weights.

    Layers with a matrix in half precision multiply in it and give float32. Vectors, such as norms' weights, are float32
    for the length of the block. Adapters' parts are computed in their own float32 and added there, with every method
    that works in layers. A model without half precision isn't changed. For training loops of one's own:

        with manytune.float32_activations(model):
            trainer.train()

    Make the optimizer inside the block if the base's own norms or biases train.

    Args:
        model: A model, with or without adapters, on any device; it may be moved inside the block.
        bfloat16_products: Also multiply in bfloat16 with those of the base's own float32 matrices that train: full
            fine-tuning as under autocast, with gradients and steps in float32.

    Mutates: how layers run, and the dtype of half-precision vectors, until the block ends.
    """
    forwards: dict[nn.Module, Callable[..., Any]] = {}
    small: list[nn.Module] = []
    for module, is_base in _modules(model):
        dtype = matrix_dtype(module)
        if isinstance(module, ModulesToSaveWrapper):
            forwards[module] = MethodType(_module_in_use, module)
        elif dtype is not None:
            forwards[module] = _in_own_dtype(module, dtype)
        elif bfloat16_products and is_base and _trains_in_float32(module):
            forwards[module] = MethodType(_ROUNDED[type(module)], module)
        elif any(tensor.dtype in HALF for tensor in _own_tensors(module)):
            small.append(module)
    with _widened(small), replaced_forwards(forwards):
        yield


def _modules(model: nn.Module) -> Iterator[tuple[nn.Module, bool]]:
    """Modules but for those that adapters consist of, and whether they are the base's rather than trained copies."""
    stack = [(model, True)]
    seen: set[nn.Module] = set()
    while stack:
        module, is_base = stack.pop()
        if module in seen:
            continue
        seen.add(module)
        yield module, is_base
        if isinstance(module, ModulesToSaveWrapper):
            stack.append((module.original_module, is_base))
            stack.extend((copy, False) for copy in module.modules_to_save.values())
        elif isinstance(module, Wrapper):
            stack.append((module.wrapped, is_base))
        else:
            stack.extend((child, is_base) for child in module.children())


def _in_own_dtype(module: nn.Module, dtype: torch.dtype) -> Callable[..., Any]:
    present = module.__dict__.get("forward")
    if present is not None:  # whoever put it there may move weights, or look at what passes
        return partial(_around, present, dtype)
    plain = type(module) in _ROUNDED
    return MethodType(plain_in_own_dtype if plain else in_own_dtype, module)


def _around(forward: Callable[..., Any], dtype: torch.dtype, *args: Any, **kwargs: Any) -> Any:
    return cast_floats(forward(*cast_floats(args, dtype), **cast_floats(kwargs, dtype)), torch.float32)


def _module_in_use(wrapper: ModulesToSaveWrapper, *args: Any, **kwargs: Any) -> Any:
    """A trained copy in float32 takes and gives float32; the original does so by its own layers' forms."""
    return wrapper.current(*args, **kwargs)


def _trains_in_float32(module: nn.Module) -> bool:
    if type(module) not in _ROUNDED or "forward" in module.__dict__:
        return False
    weight = module.get_parameter("weight")
    return weight.requires_grad and weight.dtype == torch.float32


def _own_tensors(module: nn.Module) -> Iterator[Tensor]:
    for tensors in (module._parameters, module._buffers):
        yield from (tensor for tensor in tensors.values() if tensor is not None)


@contextmanager
def _widened(modules: list[nn.Module]) -> Iterator[None]:
    """Let half-precision tensors of modules be float32; afterwards they have their former dtype, and so their bits."""
    changed = {t: t.dtype for module in modules for t in _own_tensors(module) if t.dtype in HALF}
    for tensor in changed:
        tensor.data = tensor.data.to(torch.float32)
    try:
        yield
    finally:
        for tensor, dtype in changed.items():
            tensor.data = tensor.data.to(dtype)
