"""Which models the engine runs, and why not the rest.

It puts tokens of many sequences into one row and keeps keys and values itself, which is exact where a token affects
another through attention alone and where its position is an input.
"""

from __future__ import annotations

import inspect

from torch import nn
from transformers import PreTrainedModel

_EXACT_LAYERS = {"full_attention", "sliding_attention"}
_UNEVEN = ("num_kv_shared_layers", "global_head_dim", "per_layer_config")


def unsupported_reason(model: nn.Module) -> str | None:
    """Why the engine can't run a model, as a clause such as "it has an encoder"; None if it can."""
    if not isinstance(model, PreTrainedModel):
        return f"{type(model).__name__} isn't a transformers model"
    config = model.config
    if config.is_encoder_decoder:
        return "it has an encoder"
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv1d, nn.RNNBase)):
            return f"{name} ({type(module).__name__}) carries state across positions"
    other = sorted(set(getattr(config, "layer_types", None) or ()) - _EXACT_LAYERS)
    if model._is_stateful or other:
        return f"it has layers that carry state across positions ({', '.join(other) or type(model).__name__})"
    if getattr(config, "attention_chunk_size", None):
        return "its attention works in chunks"
    if not getattr(config, "is_causal", True) or getattr(config, "use_bidirectional_attention", False):
        return "its attention looks ahead"
    sinks = next((name for name, _ in model.named_parameters() if name.rpartition(".")[2] == "sinks"), None)
    if sinks is not None:
        return f"its attention has sinks ({sinks})"
    text = config.get_text_config().to_dict()
    uneven = [name for name in _UNEVEN if text.get(name)]
    if uneven:
        return f"its layers differ in their keys and values ({uneven[0]}={text[uneven[0]]})"
    if not model.is_backend_compatible():
        return "it doesn't pass keyword arguments on to a registered attention function"
    accepted = inspect.signature(type(model).forward).parameters
    missing = [name for name in ("position_ids", "inputs_embeds", "logits_to_keep") if name not in accepted]
    return f"its forward takes no {missing[0]}" if missing else None
