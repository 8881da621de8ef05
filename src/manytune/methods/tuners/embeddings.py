"""Embedding tables of the base that travel with an adapter.

HF PEFT saves the tables of targeted embeddings and output heads along with an adapter, since users often lengthen them
for new tokens, and takes them back on loading.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

from torch import Tensor, nn

from manytune.errors import ConfigError, PeftWarning
from manytune.methods.config import PeftConfig
from manytune.methods.tuners.base import Tuner
from manytune.methods.tuners.saved_modules import ModulesToSaveWrapper
from manytune.methods.tuners.targets import base_of, candidates, matches

#: Targets that bring their tables along; HF PEFT's list.
_NAMES = ("embed_tokens", "lm_head")


def base_tables(model: nn.Module) -> dict[str, Tensor]:
    """The tables of a model's embeddings, targeted or not, and of its output head, by their name in a checkpoint."""
    known = _input_and_output(model)
    return {
        f"{path}.base_layer.weight" if module is not base_of(module) else f"{path}.weight": base_of(
            module
        ).get_parameter("weight")
        for path, module in candidates(model)
        if any(base_of(module) is one for one in known)
        or (module is not base_of(module) and isinstance(base_of(module), nn.Embedding))
    }


def saved_tables(
    tuner: Tuner, adapter_name: str, save_embedding_layers: bool | Literal["auto"]
) -> dict[str, Tensor]:
    """The tables to save with an adapter, by their name in its checkpoint, less the prefix.

    Args:
        tuner: What attaches the adapter.
        adapter_name: The adapter.
        save_embedding_layers: Whether to save the input and output embeddings; `"auto"` if the adapter targets one of
            them by name.

    Raises:
        ConfigError: `save_embedding_layers` is something else.
    """
    if save_embedding_layers not in (True, False, "auto"):
        raise ConfigError(
            f"save_embedding_layers: expected True, False or 'auto', found {save_embedding_layers!r}."
        )
    known = _input_and_output(tuner.model)
    if save_embedding_layers == "auto":
        if not known or not _targets_one(tuner.peft_config[adapter_name]):
            return {}
        warnings.warn(
            "Setting `save_embedding_layers` to `True` as embedding layers found in `target_modules`.",
            PeftWarning,
            stacklevel=4,
        )
    elif not save_embedding_layers:
        return {}
    elif not known:
        warnings.warn(
            "Could not identify embedding layer(s) because the model is not a transformers model: none are saved.",
            PeftWarning,
            stacklevel=4,
        )
        return {}
    only_targeted = _targets_one(tuner.peft_config[adapter_name])
    return {
        name: table
        for name, table in base_tables(tuner.model).items()
        if any(one.get_parameter("weight") is table for one in known)
        and (name.endswith(".base_layer.weight") or not only_targeted)
    }


def _targets_one(config: PeftConfig) -> bool:
    targets: Any = getattr(config, "target_modules", None)
    if isinstance(targets, str):
        return any(name in targets for name in _NAMES)
    return any(matches(target, _NAMES) for target in targets or ())


def _input_and_output(model: nn.Module) -> list[nn.Module]:
    found = []
    for getter in ("get_input_embeddings", "get_output_embeddings"):
        get: Any = getattr(model, getter, None)
        module = get() if callable(get) else None
        if isinstance(module, ModulesToSaveWrapper):
            continue  # its copy is part of the adapter already
        if isinstance(module, nn.Module) and hasattr(base_of(module), "weight"):
            found.append(base_of(module))
    return found
