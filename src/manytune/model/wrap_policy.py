"""Which modules of a model FSDP makes units of, said in the form that accelerate takes."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from manytune.errors import ConfigError

#: Where accelerate's launcher leaves the user's choice.
CHOSEN = "FSDP_TRANSFORMER_CLS_TO_WRAP"


def fsdp_auto_wrap_policy(model: nn.Module) -> Callable[..., Any]:
    """Make each of a model's layers, with the adapters in it, one unit that FSDP gathers and frees.

        accelerator.state.fsdp_plugin.auto_wrap_policy = fsdp_auto_wrap_policy(model)

    The layers' classes are those that `FSDP_TRANSFORMER_CLS_TO_WRAP` names, or the model's `_no_split_modules`. HF
    PEFT's function of this name says so in a form that accelerate's FSDP2 doesn't know, and all layers are one unit
    then.

    Args:
        model: The model, with or without adapters.

    Returns:
        torch's `transformer_auto_wrap_policy` for these classes, which accelerate knows for FSDP and FSDP2.

    Raises:
        ConfigError: No layer is of a class that is named, or none is named.
    """
    from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

    classes = {type(layer) for layer in layers_to_shard(model, "fsdp_auto_wrap_policy")}
    return partial(transformer_auto_wrap_policy, transformer_layer_cls=classes)


def layers_to_shard(model: nn.Module, asked_by: str) -> list[nn.Module]:
    """A model's layers: those of the classes that `FSDP_TRANSFORMER_CLS_TO_WRAP` or its `_no_split_modules` name.

    Args:
        model: The model, with or without adapters.
        asked_by: What messages begin with.

    Returns:
        Outer ones before those within them.

    Raises:
        ConfigError: As for `fsdp_auto_wrap_policy`.
    """
    chosen = [name for name in os.environ.get(CHOSEN, "").split(",") if name]
    names = set(chosen) or {
        name
        for module in model.modules()
        if isinstance(module, PreTrainedModel)
        for name in module._no_split_modules or ()
    }
    layers = [module for module in model.modules() if type(module).__name__ in names]
    missing = set(chosen) - {type(layer).__name__ for layer in layers}
    if missing or not layers:
        present = sorted({type(module).__name__ for module in model.modules() if list(module.children())})
        wanted = f"{CHOSEN} names {', '.join(sorted(missing))}" if missing else "the model names no layers"
        raise ConfigError(
            f"{asked_by}: {wanted}, of which there are none in {type(model).__name__}. Set {CHOSEN} to the "
            f"class of its layers, one of {', '.join(present)}."
        )
    return layers
