"""The forms in which the engine can keep the base's weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, get_args

from torch import Tensor, nn
from transformers import PreTrainedModel

from manytune.engine.bfloat16 import bfloat16_layers, require_bfloat16
from manytune.engine.quantized import Bits, quantized_layers
from manytune.engine.reordered_weights import can_reorder, reordered_layers
from manytune.errors import ConfigError, RequestError
from manytune.mixed.layers import Forward

Weights = Literal["reordered", "plain", "bf16", "int8", "int4"]
#: What weights are rounded to: bits of an integer, or bfloat16.
Rounding = Bits | Literal["bf16"]


def linear_layers(model: PreTrainedModel, weights: Weights) -> Mapping[str, Forward]:
    """Forwards to use in place of the linear layers' own, by path.

    Args:
        model: The base; it isn't changed.
        weights: The form; `"reordered"` is the same as `"plain"` where reordering isn't supported.

    Raises:
        ConfigError: There is no such form, or the model can't have it.
    """
    rounding = rounding_of(weights)
    if rounding == "bf16":
        return bfloat16_layers(model)
    if rounding is not None:
        return quantized_layers(model, rounding)
    return reordered_layers(model) if weights == "reordered" and can_reorder(model) else {}


def rounding_of(weights: Weights) -> Rounding | None:
    """What a form rounds weights to; None for the model's own numbers.

    Raises:
        ConfigError: There is no such form, or this processor doesn't multiply in it.
    """
    match weights:
        case "plain" | "reordered":
            return None
        case "bf16":
            require_bfloat16()
            return "bf16"
        case "int8":
            return 8
        case "int4":
            return 4
    if weights == "packed":
        raise ConfigError("weights='packed': 'packed' is called 'reordered' now. Use weights='reordered'.")
    raise ConfigError(f"weights={weights!r}: expected one of {', '.join(get_args(Weights))}.")


class WeightVersions:
    """Detects that weights were changed after a copy of them was made.

    Args:
        model: The model.
        paths: The layers of which there are copies.
    """

    def __init__(self, model: nn.Module, paths: Iterable[str]) -> None:
        self._paths = list(paths)
        self._weights = [model.get_submodule(path).get_parameter("weight") for path in self._paths]
        self._states = self._present()

    def check(self) -> None:
        """Refuse to continue with outdated copies.

        Raises:
            RequestError: A weight was replaced or changed in place.
        """
        present = self._present()
        if present == self._states:  # at each step, so in one comparison
            return
        changed = next(
            path
            for path, *states in zip(self._paths, *self._states, *present, strict=True)
            if states[:2] != states[2:]
        )
        raise RequestError(
            f"the base's weights changed while the engine has a copy of them ({changed}): an adapter was merged, "
            "or training continued. Restore them, make a new Engine, or use weights='plain'."
        )

    def _present(self) -> tuple[list[int], list[int]]:
        """Where the weights are, and how often each was changed in place."""
        return [*map(Tensor.data_ptr, self._weights)], [weight._version for weight in self._weights]
