"""Weights that FSDP2 (`torch.distributed.fsdp.fully_shard`) shards: each process holds a part of each, as a DTensor.

While a layer runs, FSDP2 puts the whole weights in place, so methods compute as ever. These functions are for what
looks at weights at other times: files, switching, merging.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn

from manytune.errors import AdapterError


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor, of which this process holds a part."""
    kind = _known("torch.distributed.tensor", "DTensor")
    return kind is not None and isinstance(tensor, kind)


def fsdp_units(model: nn.Module) -> list[Any]:
    """The modules within a model, itself included, that `fully_shard` was called with."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return []
    kind = _known("torch.distributed.fsdp", "FSDPModule")
    return [] if kind is None else [module for module in model.modules() if isinstance(module, kind)]


def has_shards(model: nn.Module) -> bool:
    """Whether any of a model's weights is sharded, at rest."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return False
    return bool(fsdp_units(model)) or any(is_sharded(parameter) for parameter in model.parameters())


def reshard(model: nn.Module) -> None:
    """Put the sharded weights back in place of whole ones that an earlier call left there.

    After a forward without a backward the outermost unit keeps whole copies. What is written to these, or whether they
    train, is forgotten at the next step. No other process has to take part.
    """
    for unit in fsdp_units(model):
        unit.reshard()


@contextmanager
def _resharding_after(model: nn.Module, context: AbstractContextManager[None]) -> Iterator[None]:
    with context:
        try:
            yield
        finally:
            reshard(model)


def resharding(model: nn.Module, context: AbstractContextManager[None]) -> AbstractContextManager[None]:
    """A context that switches adapters, with `reshard` before each of its ends; itself if nothing is sharded."""
    if not fsdp_units(model):
        return context
    reshard(model)
    return _resharding_after(model, context)


#: What to do instead of merging and detaching.
IN_ONE_PROCESS = (
    "Save the adapter with save_pretrained on all processes, and do it with a base that one process holds whole: "
    "PeftModel.from_pretrained(base, directory)"
)
#: What to do instead of adding adapters late.
BEFORE_SHARDING = "Add and load adapters first, and shard the model then"


def refuse_sharded(model: nn.Module, what: str, instead: str) -> None:
    """Refuse what can't be done to sharded weights.

    Args:
        model: The model.
        what: What was asked for, as a verb.
        instead: What to do, as a sentence without its stop.

    Raises:
        AdapterError: A weight is sharded.
    """
    if has_shards(model):
        raise AdapterError(
            f"Can't {what}: the model's weights are sharded over processes (FSDP2). {instead}."
        )


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by name with the sharded ones gathered; if there are any, all processes must call it alike."""
    with torch.no_grad():
        return {name: _gathered(tensor) for name, tensor in tensors.items()}


def whole_for_files(tensors: Mapping[str, Tensor], *, keep: bool = True) -> dict[str, Tensor]:
    """The same one after the other, the gathered ones in the CPU's memory, for files.

    Args:
        tensors: By name.
        keep: If not, this process only gives its parts to others, and the result is empty.
    """
    found = {}
    with torch.no_grad():
        for name, tensor in tensors.items():
            value = _gathered(tensor).cpu() if is_sharded(tensor) else tensor
            if keep:
                found[name] = value
    return found


def own_part(tensor: Any) -> Tensor:
    """What this process holds of a tensor: all of one that isn't sharded."""
    found: Tensor = tensor.to_local() if is_sharded(tensor) else tensor
    return found


def placed_like(parameter: Tensor, value: Tensor) -> Tensor:
    """A whole value of a parameter's shape, sharded if the parameter is; others, such as counts, as they are."""
    sharded = is_sharded(parameter) and value.shape == parameter.shape
    return _placed(value, parameter) if sharded else value


def fill(parameter: Tensor, value: Tensor) -> None:
    """Write a whole value, the same on each process, into a parameter that may be sharded.

    Raises:
        AdapterError: The value is on the meta device.
    """
    if value.is_meta:
        raise AdapterError(
            "A weight that was kept aside has no values any more: the model went through the meta device, as with "
            "accelerate's cpu_ram_efficient_loading. Turn that off."
        )
    with torch.no_grad():
        if is_sharded(parameter):
            parameter.copy_(_placed(value, parameter))
        else:
            parameter.copy_(_gathered(value))


def _gathered(tensor: Any) -> Tensor:
    found: Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor
    return found


def _placed(value: Tensor, like: Any) -> Tensor:
    if is_sharded(value):
        return value
    from torch.distributed.tensor import distribute_tensor

    own = value.detach().to(like.device, like.dtype)
    # Each process takes its part of its own copy, so nothing is sent.
    return distribute_tensor(own, like.device_mesh, like.placements, src_data_rank=None)


def _known(module: str, name: str) -> Any:
    """A class, if anything has imported its module; without it there is no object of it, and importing takes long."""
    return getattr(sys.modules.get(module), name, None)
