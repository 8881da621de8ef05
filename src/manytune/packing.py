"""Whether several sequences in one packed row stay apart in a transformers model: what looking at it tells.

A packed row is exact where a token reaches another through attention alone, where each token's position is an input,
and where nothing depends on how tokens are arranged in rows.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

from torch import nn
from transformers import PreTrainedModel

_EXACT_LAYERS = {"full_attention", "sliding_attention"}


def packing_obstacle(model: PreTrainedModel, *, inputs: Sequence[str]) -> str | None:
    """What keeps a model from running packed rows, as a clause such as "it has an encoder"; None if nothing was found.

    Args:
        model: A transformers model, without wrappers. Nothing of it is run.
        inputs: The arguments that its forward has to take.
    """
    for check in _CHECKS:
        if (obstacle := check(model)) is not None:
            return obstacle
    accepted = inspect.signature(type(model).forward).parameters
    missing = [name for name in inputs if name not in accepted]
    return f"its forward takes no {missing[0]}" if missing else None


def _encoder(model: PreTrainedModel) -> str | None:
    return "it has an encoder" if model.config.is_encoder_decoder else None


def _state(model: PreTrainedModel) -> str | None:
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv1d, nn.RNNBase)):
            return f"{name} ({type(module).__name__}) carries state across positions"
    return "it carries state across positions" if model._is_stateful else None


def _layer_types(model: PreTrainedModel) -> str | None:
    other = sorted(set(getattr(model.config, "layer_types", None) or ()) - _EXACT_LAYERS)
    return (
        f"its layers of type {', '.join(other)} carry state across positions or chunk them" if other else None
    )


def _chunks(model: PreTrainedModel) -> str | None:
    size = getattr(model.config, "attention_chunk_size", None)
    return f"its attention works in chunks of {size} columns" if size else None


def _bidirectional(model: PreTrainedModel) -> str | None:
    causal = getattr(model.config, "is_causal", True)
    both = getattr(model.config, "use_bidirectional_attention", False)
    return None if causal and not both else "its attention looks ahead"


def _sinks(model: PreTrainedModel) -> str | None:
    found = [name for name, _ in model.named_parameters() if name.rpartition(".")[2] == "sinks"]
    return f"its attention has sinks ({found[0]})" if found else None


def _attention_function(model: PreTrainedModel) -> str | None:
    if model.is_backend_compatible():
        return None
    return "it doesn't pass keyword arguments on to a registered attention function"


_CHECKS: tuple[Callable[[PreTrainedModel], str | None], ...] = (
    _encoder,
    _state,
    _layer_types,
    _chunks,
    _bidirectional,
    _sinks,
    _attention_function,
)
