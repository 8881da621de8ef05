"""What state the adapters of a model are in, layer by layer and as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from manytune.errors import AdapterError
from manytune.methods.tuners.adapter_layer import AdapterLayer
from manytune.methods.tuners.quantized_layers import quantization_backend
from manytune.methods.tuners.saved_modules import ModulesToSaveWrapper
from manytune.model.accounting import count_parameters
from manytune.model.adapted import AdaptedModel

Irregular = Literal["irregular"]
_Carrier = AdapterLayer | ModulesToSaveWrapper


@dataclass(frozen=True)
class LayerStatus:
    """One layer's adapters.

    Attributes:
        name: Its path within `base_model`, which for a `PeftModel` begins with `model`.
        module_type: Its kind, such as `lora.Linear`, or `ModulesToSaveWrapper`.
        enabled: Whether adapters are applied.
        active_adapters: Those in use.
        merged_adapters: Those written into the weights.
        requires_grad: Whether each adapter trains; `"irregular"` if some of its parameters do.
        available_adapters: Those that the layer carries, sorted.
        devices: Where each adapter's parameters are.
        quantization_backend: What holds the base's weight packed, such as `bitsandbytes`; None if nothing does.
    """

    name: str
    module_type: str
    enabled: bool
    active_adapters: list[str]
    merged_adapters: list[str]
    requires_grad: dict[str, bool | Irregular]
    available_adapters: list[str]
    devices: dict[str, list[str]]
    quantization_backend: str | None


@dataclass(frozen=True)
class ModelStatus:
    """A model's adapters. Where the layers disagree, the value is `"irregular"`.

    Attributes:
        base_model_type: The base's class.
        adapter_model_type: The method's class, such as `LoraModel`; `"None"` for adapters without a `PeftModel`.
        peft_types: Each adapter's method.
        trainable_params: How many parameters train.
        total_params: Of how many.
        num_adapter_layers: Layers with adapters or with copies trained in full.
        enabled: Whether adapters are applied.
        active_adapters: Those in use.
        merged_adapters: Those written into the weights.
        requires_grad: Whether each adapter trains.
        available_adapters: All there are, sorted.
        devices: Where each adapter's parameters are.
        quantization_backend: See `LayerStatus`.
    """

    base_model_type: str
    adapter_model_type: str
    peft_types: dict[str, str]
    trainable_params: int
    total_params: int
    num_adapter_layers: int
    enabled: bool | Irregular
    active_adapters: list[str] | Irregular
    merged_adapters: list[str] | Irregular
    requires_grad: dict[str, bool | Irregular]
    available_adapters: list[str]
    devices: dict[str, list[str]]
    quantization_backend: str | Irregular | None


def get_layer_status(model: nn.Module) -> list[LayerStatus]:
    """The state of each layer with adapters.

    Args:
        model: A `PeftModel`, or any module with adapters in it.

    Raises:
        AdapterError: There are no adapter layers.
        NotInLayersTypeError: The model has a soft prompt, which isn't in layers.
    """
    base = _base_of(model)
    found = [
        _layer_status(name, module)
        for name, module in base.named_modules()
        if isinstance(module, (AdapterLayer, ModulesToSaveWrapper))
    ]
    if not found:
        raise AdapterError(
            "No adapter layers found in the model, please ensure that it's a PEFT model or that you have PEFT adapters "
            "injected in the model."
        )
    return found


def get_model_status(model: nn.Module) -> ModelStatus:
    """The state of all layers with adapters, in one; arguments and errors as for `get_layer_status`."""
    layers = get_layer_status(model)
    names = sorted({name for layer in layers for name in layer.available_adapters})
    configs = getattr(model, "peft_config", {})
    trainable, total = count_parameters(model)
    adapters = [layer for layer in layers if layer.module_type != "ModulesToSaveWrapper"]
    merged: dict[str, set[bool]] = {name: set() for name in names}
    for layer in layers:
        for name in layer.available_adapters:
            merged[name].add(name in layer.merged_adapters)
    once = next((layer.merged_adapters for layer in adapters if layer.merged_adapters), [])
    partly = any(len(states) > 1 for states in merged.values())
    return ModelStatus(
        base_model_type=type(model.get_base_model() if isinstance(model, AdaptedModel) else model).__name__,
        adapter_model_type=type(model.tuner).__name__ if isinstance(model, AdaptedModel) else "None",
        peft_types={name: str(config.peft_type) for name, config in configs.items()},
        trainable_params=trainable,
        total_params=total,
        num_adapter_layers=len(layers),
        enabled=_agreed(layer.enabled for layer in layers),
        active_adapters=_agreed(layer.active_adapters for layer in adapters or layers),
        merged_adapters="irregular" if partly else once,
        requires_grad=_by_adapter(names, layers, lambda layer: layer.requires_grad),
        available_adapters=names,
        devices={
            name: sorted({d for layer in layers for d in layer.devices.get(name, ())}) for name in names
        },
        quantization_backend=_agreed(layer.quantization_backend for layer in adapters or layers),
    )


class NotInLayersTypeError(AdapterError, TypeError):
    """Asked for the layers of a method that has none."""


def _base_of(model: nn.Module) -> nn.Module:
    if not isinstance(model, AdaptedModel):
        return model
    if not model.tuner.in_layers:
        kind = next(iter(model.peft_config.values())).peft_type
        raise NotInLayersTypeError(
            f"get_layer_status() and get_model_status() need adapters in layers; {kind} has none."
        )
    return model.tuner


def _layer_status(name: str, module: _Carrier) -> LayerStatus:
    if isinstance(module, AdapterLayer):
        available = module._all_available_adapter_names()
        kind, merged = f"{module.kind}.{type(module).__name__}".lstrip("."), list(module.merged_adapters)
        backend = quantization_backend(module.base_layer)
    else:
        available = sorted(module.modules_to_save)
        kind, merged, backend = "ModulesToSaveWrapper", [], quantization_backend(module.original_module)
    parameters = {adapter: list(module.tensors(adapter).values()) for adapter in available}
    return LayerStatus(
        name=name,
        module_type=kind,
        enabled=not module.disable_adapters,
        active_adapters=list(module.active_adapters),
        merged_adapters=merged,
        requires_grad={
            adapter: _agreed(p.requires_grad for p in mine) for adapter, mine in parameters.items()
        },
        available_adapters=available,
        devices={adapter: sorted({str(p.device) for p in mine}) for adapter, mine in parameters.items()},
        quantization_backend=backend,
    )


def _agreed(values: Iterable[Any]) -> Any:
    distinct: list[Any] = []
    for value in values:
        if value not in distinct:
            distinct.append(value)
    return distinct[0] if len(distinct) == 1 else "irregular"


def _by_adapter(
    names: list[str], layers: list[LayerStatus], read: Callable[[LayerStatus], dict[str, Any]]
) -> dict[str, Any]:
    return {name: _agreed(read(layer)[name] for layer in layers if name in read(layer)) for name in names}
