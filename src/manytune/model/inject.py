"""Adapters in a model without a `PeftModel` around it: the model stays what it is."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor, nn

from manytune.errors import ConfigError, PeftWarning
from manytune.methods.config import PeftConfig
from manytune.methods.registry import method_of
from manytune.methods.tuners.base import Tuner
from manytune.methods.tuners.layer_tuner import LayerTuner
from manytune.methods.tuners.targets import ALL_LINEAR, all_linear_targets, candidates, matches
from manytune.model.state_dicts import INJECTED
from manytune.sharded import BEFORE_SHARDING, refuse_sharded

Model = TypeVar("Model", bound=nn.Module)


def inject_adapter_in_model(
    peft_config: PeftConfig,
    model: Model,
    adapter_name: str = "default",
    low_cpu_mem_usage: bool = False,
    state_dict: Mapping[str, Tensor] | None = None,
) -> Model:
    """Put adapter layers into a model, in place. The adapter is in use at once, and all else is frozen.

    Args:
        peft_config: A method with layers, such as `LoraConfig(r=8)`; kept, with what is inferred from the model in it.
        model: The model. One that has adapters already gets one more.
        adapter_name: The adapter's name.
        low_cpu_mem_usage: Make the adapter's weights on the meta device; `set_peft_model_state_dict` brings them.
        state_dict: An adapter's tensors; the targets are then the modules that their names name. The values
            aren't loaded.

    Returns:
        The same model; its `peft_config` holds each adapter's options.

    Raises:
        ConfigError: The method has no layers of its own in the model; or `state_dict` is given and parameters are
            targeted, whose names aren't in it.
        NoMatchingPeftModuleError: The configuration targets no module.

    Warns:
        RuntimeWarning: `state_dict` names other modules than the configuration.
    """
    kind = method_of(peft_config).tuner
    if not kind.in_layers or not issubclass(kind, LayerTuner):
        raise ConfigError(
            f"inject_adapter_in_model puts adapter layers into a model, and {peft_config.peft_type} has none. "
            "Use get_peft_model."
        )
    if state_dict is not None:
        if peft_config.adapts_parameters:
            raise ConfigError(
                "inject_adapter_in_model can't tell from a state_dict which parameters an adapter adapts. Leave the "
                "state_dict out."
            )
        _target_what_is_there(peft_config.as_saved(), model, kind, state_dict)
    refuse_sharded(model, "attach an adapter", BEFORE_SHARDING)
    present = model.__dict__.get(INJECTED)
    if isinstance(present, Tuner):
        if type(present) is not kind:
            raise ConfigError(
                f"The model has adapters of {type(present).__name__}; one of {kind.__name__} doesn't go next to them."
            )
        warnings.warn(
            "Already found a `peft_config` attribute in the model. This will lead to having multiple adapters in the "
            "model. Make sure to know what you are doing!",
            PeftWarning,
            stacklevel=2,
        )
        present.add_adapter(adapter_name, peft_config, low_cpu_mem_usage=low_cpu_mem_usage)
        present.set_adapter(adapter_name, peft_config.inference_mode)
        return model
    tuner = kind(model, peft_config, adapter_name, low_cpu_mem_usage=low_cpu_mem_usage)
    # Not as a child: the model's parameters keep their names.
    model.__dict__[INJECTED] = tuner
    model.__dict__["peft_config"] = tuner.peft_config
    return model


def _target_what_is_there(
    config: PeftConfig, model: nn.Module, kind: type[LayerTuner], state_dict: Mapping[str, Tensor]
) -> None:
    paths = [path for path, _ in candidates(model)]
    named = {path for path in paths if any(key.startswith(f"{path}.{kind.prefix}") for key in state_dict)}
    targets = getattr(config, "target_modules", None)
    if isinstance(targets, str) and targets.lower() == ALL_LINEAR:
        targets = all_linear_targets(model, config.task_type)
    configured = {path for path in paths if matches(path, targets)} if targets is not None else named
    if configured != named:
        warnings.warn(
            "While injecting the PEFT adapters, an inconsistency was discovered between the PEFT config and the "
            f"provided state_dict. Only the config names {sorted(configured - named)}; only the state_dict names "
            f"{sorted(named - configured)}. The state_dict decides.",
            RuntimeWarning,
            stacklevel=3,
        )
    if configured != named or targets is None:
        config.target_modules = named  # type: ignore[attr-defined]
