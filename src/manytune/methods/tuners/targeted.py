"""What the adapters of a model adapt, by the names that the base has for it."""

from __future__ import annotations

from torch import nn

from manytune.methods.tuners.base_layers import Wrapper


def targeted_modules(model: nn.Module) -> list[str]:
    """Paths of the layers that carry adapters, in the model's order."""
    return [path for path, wrapper in _wrappers(model) if wrapper.parameter_name is None]


def targeted_parameters(model: nn.Module) -> list[str]:
    """Paths of the parameters that are adapted for themselves, in the model's order."""
    by_layer: dict[str, list[str]] = {}
    for path, wrapper in _wrappers(model):
        if wrapper.parameter_name is not None:
            # One around the other, as many as the layer has such parameters.
            layer = path.split(".base_layer")[0]
            by_layer.setdefault(layer, []).append(f"{layer}.{wrapper.parameter_name}")
    return [name for names in by_layer.values() for name in reversed(names)]


def _wrappers(model: nn.Module) -> list[tuple[str, Wrapper]]:
    return [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, Wrapper) and module.carries_adapters
    ]
