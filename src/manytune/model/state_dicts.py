"""An adapter's tensors in and out of a model, named as in a checkpoint: HF PEFT's two functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from manytune.errors import AdapterError
from manytune.methods.checkpoint.format import LoadResult, get_state, set_state
from manytune.methods.tuners.base import Tuner
from manytune.methods.tuners.embeddings import saved_tables
from manytune.model.adapted import AdaptedModel
from manytune.sharded import reshard, whole_for_files

#: Where `inject_adapter_in_model` leaves a model's tuner.
INJECTED = "_manytune_tuner"


def find_tuner(model: nn.Module) -> Tuner | None:
    """What attaches a model's adapters, `PeftModel` or not; None if nothing does."""
    plain = _unwrapped(model)
    if isinstance(plain, AdaptedModel):
        return plain.tuner
    injected = plain.__dict__.get(INJECTED)
    return injected if isinstance(injected, Tuner) else None


def tuner_of(model: nn.Module) -> tuple[Tuner, str]:
    """What attaches a model's adapters, and what its checkpoint's names start with.

    Args:
        model: A `PeftModel` or a model that `inject_adapter_in_model` gave; compiled, or inside
            `DistributedDataParallel`, or not.

    Raises:
        AdapterError: The model has no adapters.
    """
    plain = _unwrapped(model)
    tuner = find_tuner(plain)
    if tuner is None:
        raise AdapterError(
            f"{type(plain).__name__} has no adapters. Expected the result of get_peft_model or "
            "inject_adapter_in_model."
        )
    return tuner, tuner.file_prefix if isinstance(plain, AdaptedModel) else ""


def _unwrapped(model: nn.Module) -> nn.Module:
    compiled: nn.Module = getattr(model, "_orig_mod", model)
    return compiled.module if isinstance(compiled, DistributedDataParallel) else compiled


def get_peft_model_state_dict(
    model: nn.Module,
    state_dict: Mapping[str, Tensor] | None = None,
    adapter_name: str = "default",
    unwrap_compiled: bool = False,
    save_embedding_layers: bool | Literal["auto"] = "auto",
) -> dict[str, Tensor]:
    """An adapter's tensors, named as in a checkpoint. They share the model's memory.

    Weights that FSDP2 shards are gathered into the CPU's memory, so all processes must call this, unless `state_dict`
    has them.

    Args:
        model: See `tuner_of`.
        state_dict: The state dict of the whole model with its adapters, such as `accelerator.get_state_dict(model)`
            gives to the main process. No other process takes part then.
        adapter_name: The adapter.
        unwrap_compiled: Without effect: the names never show that a model was compiled.
        save_embedding_layers: See `PeftModel.save_pretrained`.

    Raises:
        AdapterError: There is no such adapter.
        CheckpointError: `state_dict` lacks tensors of the adapter.
    """
    tuner, prefix = tuner_of(model)
    if state_dict is None:
        found = get_state(tuner, adapter_name, prefix=prefix)
    else:
        inside = {name.removeprefix(prefix): tensor for name, tensor in state_dict.items()}
        found = {f"{prefix}{key}": t for key, t in tuner.state_within(adapter_name, inside).items()}
    tables = {
        f"{prefix}{tuner.parameter_prefix}{name}": table.detach()
        for name, table in saved_tables(tuner, adapter_name, save_embedding_layers).items()
    }
    if state_dict is None:
        return found | whole_for_files(tables)
    # The model has the tables of the adapter in use, which may be another one.
    return found | {k: t if tuner.own_tables else state_dict.get(k, t) for k, t in tables.items()}


def give_parts(
    model: nn.Module, adapter_name: str, save_embedding_layers: bool | Literal["auto"] = "auto"
) -> None:
    """Take part in what `get_peft_model_state_dict` gives to another process, and keep nothing of it."""
    tuner, _ = tuner_of(model)
    whole_for_files(tuner.state(adapter_name), keep=False)
    whole_for_files(saved_tables(tuner, adapter_name, save_embedding_layers), keep=False)


def set_peft_model_state_dict(
    model: nn.Module,
    peft_model_state_dict: Mapping[str, Tensor],
    adapter_name: str = "default",
    ignore_mismatched_sizes: bool = False,
    low_cpu_mem_usage: bool = False,
) -> LoadResult:
    """Fill an adapter from tensors named as in a checkpoint.

    Args:
        model: See `tuner_of`. If FSDP2 shards it, all processes must call this with the same tensors.
        peft_model_state_dict: The tensors.
        adapter_name: The adapter.
        ignore_mismatched_sizes: Leave out tensors of another shape, rather than raise.
        low_cpu_mem_usage: Without effect: parameters on the meta device always come to life here.

    Returns:
        What the adapter lacks and what fits nothing.

    Raises:
        AdapterError: There is no such adapter.
        ShapeMismatchError: A tensor has another shape than the adapter's.
    """
    tuner, prefix = tuner_of(model)
    reshard(model)
    return set_state(
        tuner,
        adapter_name,
        peft_model_state_dict,
        prefix=prefix,
        ignore_mismatched_sizes=ignore_mismatched_sizes,
    )
