"""Bottleneck adapters in a mixed batch: D, e, φ, U and f as they are; z is y, or the MLP's input beside it."""

from __future__ import annotations

from torch import nn

from manytune.errors import ConfigError
from manytune.methods.bottleneck import BottleneckConfig
from manytune.methods.tuners.targets import Selection, select
from manytune.methods.tuners.terms import Adapter, Terms, Update, by_layer, check_shape, linear_at, sizes

_NAMES = tuple(f"bottleneck_{side}.{name}" for side in ("down", "up") for name in ("weight", "bias"))


def bottleneck_terms(adapter: Adapter, model: nn.Module) -> Terms:
    """The small networks, with the layers that parallel ones read beside.

    Raises:
        ConfigError: Something in it can't run in a mixed batch, or doesn't fit the model.
    """
    config = adapter.config
    assert isinstance(config, BottleneckConfig)
    found = by_layer(adapter, _NAMES)
    sources: dict[str, str] = {}
    if config.style == "parallel":
        layers = config.layers_to_transform
        chosen = [layers] if isinstance(layers, int) else layers
        starts = [path for path, _ in select(model, Selection(config.mlp_input_modules or "", layers=chosen))]
        ends = [path for path, _ in select(model, Selection(config.mlp_modules or "", layers=chosen))]
        sources = dict(zip(ends, starts, strict=True))
    updates = {}
    for path, tensors in found.items():
        missing = sorted(set(_NAMES) - set(tensors))
        if missing:
            raise ConfigError(f"{path}: the adapter lacks {missing[0]}.")
        down, e, up, f = (tensors[name] for name in _NAMES)
        _, outputs = sizes(linear_at(model, path))
        check_shape(path, _NAMES[2], up, (outputs, down.shape[0]))
        updates[path] = Update(down, up, config.scaling, e, f, sources.get(path))
    return Terms(updates=updates, activation=config.non_linearity, reads_output=config.style != "parallel")
