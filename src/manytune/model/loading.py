"""From an adapter's file into the adapter: what is left over on either side is never passed over."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from manytune.errors import CheckpointError, PeftWarning
from manytune.methods.checkpoint.files import HUB_OPTIONS
from manytune.methods.checkpoint.format import LoadResult, read_tensors, set_state
from manytune.methods.tuners.base import Tuner

_LOAD_OPTIONS = {"subfolder", "torch_device", "ignore_mismatched_sizes", "low_cpu_mem_usage", "strict"}


def hub_options(options: dict[str, Any]) -> dict[str, Any]:
    """Those of some options that a hub takes."""
    return {key: options[key] for key in HUB_OPTIONS if key in options}


def load_into(tuner: Tuner, model_id: str | Path, adapter_name: str, **kwargs: Any) -> LoadResult:
    """Fill an adapter that was added before from its file; options as for `PeftModel.load_adapter`.

    Warns:
        PeftWarning: The file lacks tensors that the adapter has.

    Raises:
        CheckpointError: A file is missing or damaged; a tensor in it fits nothing in the model; or, with `strict`,
            it lacks tensors that the adapter has.
    """
    unknown = set(kwargs) - _LOAD_OPTIONS - set(HUB_OPTIONS)
    if unknown:
        raise TypeError(f"Unknown options for loading an adapter: {sorted(unknown)}.")
    device = kwargs.get("torch_device") or str(_device_of(tuner.model))
    tensors = read_tensors(model_id, device=device, subfolder=kwargs.get("subfolder"), **hub_options(kwargs))
    result = set_state(
        tuner,
        adapter_name,
        tensors,
        ignore_mismatched_sizes=kwargs.get("ignore_mismatched_sizes", False),
    )
    if result.unexpected_keys:
        raise CheckpointError(
            f"{model_id}: {len(result.unexpected_keys)} tensors fit nothing in the model: "
            f"{_some(result.unexpected_keys)}. Was the adapter trained on another base, or its adapter_config.json "
            "changed?"
        )
    if result.missing_keys and kwargs.get("low_cpu_mem_usage", False):
        raise CheckpointError(
            f"{model_id}: {len(result.missing_keys)} tensors of the adapter are missing: "
            f"{_some(result.missing_keys)}. With low_cpu_mem_usage=True nothing else gives them values."
        )
    if result.missing_keys and kwargs.get("strict", False):
        raise CheckpointError(
            f"{model_id}: {len(result.missing_keys)} tensors of the adapter are missing: "
            f"{_some(result.missing_keys)}. Used as it is, the adapter would be partly untrained. Save it again."
        )
    if result.missing_keys:
        warnings.warn(
            f"Found missing adapter keys while loading the checkpoint: {result.missing_keys}. "
            "They keep their initial values.",
            PeftWarning,
            stacklevel=4,
        )
    note = tuner.peft_config[adapter_name].loading_note
    if note is not None:
        warnings.warn(f"{model_id}: {note}", PeftWarning, stacklevel=4)
    return result


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _device_of(model: nn.Module) -> torch.device:
    parameter: Tensor | None = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device
