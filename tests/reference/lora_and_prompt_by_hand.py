"""LoRA and a soft prompt on a Llama without any method's code: new weights, a longer input, a filled cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import DynamicCache


def apply_by_hand(
    base: nn.Module,
    factors: Mapping[str, Tensor],
    virtual: Tensor,
    kind: str,
    inputs: Mapping[str, Tensor],
    *,
    scaling: float,
) -> Tensor:
    """The logits of the input's positions.

    Args:
        base: A Llama for causal language modelling.
        factors: LoRA's A and B by their names in a model with an adapter called `default`.
        virtual: Embeddings (tokens, dim), or for `prefix-tuning` keys and values (tokens, layers * 2 * width).
        kind: The soft prompt's method.
        inputs: `input_ids`, perhaps `attention_mask`.
        scaling: alpha / r.
    """
    model: Any = base
    weights = dict(base.named_parameters())
    for name, a in factors.items():
        if ".lora_A." in name:
            path = name.removeprefix("base_model.model.").split(".lora_A.")[0]
            b = factors[name.replace("lora_A", "lora_B")]
            weights[f"{path}.weight"] = weights[f"{path}.weight"] + scaling * b @ a
    ids, tokens = inputs["input_ids"], len(virtual)
    rows, length = ids.shape
    call: dict[str, Any] = {}
    if "attention_mask" in inputs:
        call["attention_mask"] = torch.cat((torch.ones(rows, tokens), inputs["attention_mask"]), dim=1)
    if kind == "prefix-tuning":
        heads = model.config.num_key_value_heads
        cache = DynamicCache()
        parts = virtual.chunk(2 * model.config.num_hidden_layers, dim=1)
        for layer in range(model.config.num_hidden_layers):
            keys, values = (
                part.reshape(tokens, heads, -1).transpose(0, 1).expand(rows, -1, -1, -1)
                for part in parts[2 * layer : 2 * layer + 2]
            )
            cache.update(keys, values, layer)
        call |= {"input_ids": ids, "past_key_values": cache}
    else:
        embeddings = model.get_input_embeddings().weight[ids]
        call["inputs_embeds"] = torch.cat((virtual.expand(rows, -1, -1), embeddings), dim=1)
    logits: Tensor = functional_call(base, weights, kwargs=call).logits
    return logits[:, -length:]
