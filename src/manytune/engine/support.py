"""Which models the engine runs, and why not the rest.

It puts tokens of many sequences into one row and keeps keys and values itself.
"""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from manytune.engine.encoder_decoder.structure import encoder_decoder_obstacle
from manytune.packing import packing_obstacle

_UNEVEN = ("num_kv_shared_layers", "global_head_dim", "per_layer_config")


def unsupported_reason(model: nn.Module) -> str | None:
    """Why the engine can't run a model, as a clause such as "it has an encoder"; None if it can."""
    if not isinstance(model, PreTrainedModel):
        return f"{type(model).__name__} isn't a transformers model"
    if model.config.is_encoder_decoder:
        return encoder_decoder_obstacle(model)
    obstacle = packing_obstacle(model, inputs=("position_ids", "inputs_embeds", "logits_to_keep"))
    if obstacle is not None:
        return obstacle
    text = model.config.get_text_config().to_dict()
    uneven = [name for name in _UNEVEN if text.get(name)]
    if uneven:
        return f"its layers differ in their keys and values ({uneven[0]}={text[uneven[0]]})"
    return None
