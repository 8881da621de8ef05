"""LoRA in a mixed batch: D = A, U = s · B."""

from __future__ import annotations

import math

from torch import nn

from manytune.errors import ConfigError
from manytune.methods.lora.config import LoraConfig
from manytune.methods.lora.init import starts_from_weight
from manytune.methods.tuners.targets import first_match
from manytune.methods.tuners.terms import (
    Adapter,
    Factors,
    Terms,
    Update,
    by_layer,
    check_shape,
    linear_at,
    sizes,
)
from manytune.mixed.dora import dora_factors

_A, _B, _BIAS, _MAGNITUDE = "lora_A.weight", "lora_B.weight", "lora_B.bias", "lora_magnitude_vector"


def lora_terms(adapter: Adapter, model: nn.Module) -> Terms:
    """LoRA's terms, and DoRA's factors where the adapter has magnitudes.

    Raises:
        ConfigError: Something in it can't run in a mixed batch, or doesn't fit the model.
    """
    config = adapter.config
    assert isinstance(config, LoraConfig)
    if starts_from_weight(config.init_lora_weights):
        raise ConfigError(
            f"init_lora_weights={config.init_lora_weights!r}: the adapter runs beside a changed base, so it can't "
            "share one. Save it with path_initial_model_for_weight_conversion, which makes it a plain LoRA adapter."
        )
    updates, factors = {}, {}
    for path, tensors in by_layer(adapter, (_A, _B, _BIAS, _MAGNITUDE)).items():
        module = linear_at(model, path)
        inputs, outputs = sizes(module)
        if _A not in tensors or _B not in tensors:
            raise ConfigError(f"{path}: expected {_A} and {_B}, found {', '.join(sorted(tensors))}.")
        a, b, bias = tensors[_A], tensors[_B], tensors.get(_BIAS)
        check_shape(path, _A, a, (a.shape[0], inputs))
        check_shape(path, _B, b, (outputs, a.shape[0]))
        scaling = _scaling(config, path, a.shape[0])
        if _MAGNITUDE in tensors:
            gains, factors[path] = dora_factors(module, a, b, tensors[_MAGNITUDE].flatten(), scaling)
            b = gains[:, None] * b
            bias = None if bias is None else gains * bias
        updates[path] = Update(a, b, scaling, up_bias=bias)
    found: dict[str, Factors] = factors
    return Terms(updates=updates, factors=found)


def _scaling(config: LoraConfig, path: str, rank: int) -> float:
    key = first_match(path, config.alpha_pattern or {})
    alpha = config.lora_alpha if key is None else config.alpha_pattern[key]
    return float(alpha / (math.sqrt(rank) if config.use_rslora else rank))
