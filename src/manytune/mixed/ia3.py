"""IA3 in a mixed batch: a = l in feed-forward modules, c = l elsewhere."""

from __future__ import annotations

from torch import nn

from manytune.errors import ConfigError
from manytune.methods.tuners.terms import Adapter, Factors, Terms, by_layer, check_shape, linear_at, sizes

_FACTORS = "ia3_l"


def ia3_terms(adapter: Adapter, model: nn.Module) -> Terms:
    """IA3's factors. The stored shape says which side they belong to: (1, in) or (out, 1).

    Raises:
        ConfigError: Something in it can't run in a mixed batch, or doesn't fit the model.
    """
    factors = {}
    for path, tensors in by_layer(adapter, (_FACTORS,)).items():
        inputs, outputs = sizes(linear_at(model, path))
        vector = tensors[_FACTORS]
        if vector.dim() != 2 or 1 not in vector.shape:
            raise ConfigError(
                f"{path}: {_FACTORS} has shape {tuple(vector.shape)}, expected (out, 1) or (1, in)."
            )
        if vector.shape[0] == 1:
            check_shape(path, _FACTORS, vector, (1, inputs))
            factors[path] = Factors(inputs=vector.flatten())
        else:
            check_shape(path, _FACTORS, vector, (outputs, 1))
            factors[path] = Factors(outputs=vector.flatten())
    return Terms(factors=factors)
