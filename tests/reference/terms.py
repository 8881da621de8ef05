"""The slow twin of whatever runs an adapter from its terms: a plain model, and the formula at each layer.

    y = c ⊙ (W (a ⊙ x) + b) + d + s (U φ(D z + e) + f)

The model's own layers compute W x + b; everything else is written out here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from manytune.methods.tuners.terms import Terms, Update

PHI = {
    None: lambda low: low,
    "relu": lambda low: low.clamp(min=0),
    "gelu": lambda low: low * 0.5 * (1 + torch.erf(low / 2**0.5)),
    "silu": lambda low: low / (1 + (-low).exp()),
    "tanh": torch.tanh,
}


@torch.no_grad()
def logits(model: nn.Module, terms: Terms, inputs: dict[str, Any]) -> Tensor:
    """What a plain model gives with an adapter's terms; the positions of virtual tokens included."""
    with in_layers(model, terms):
        found: Tensor = model(**before_the_prompt(model, terms, inputs)).logits
    return found


@contextmanager
def in_layers(model: nn.Module, terms: Terms) -> Iterator[None]:
    """Within this context a model's layers compute the terms."""
    seen: dict[str, Tensor] = {}
    sources = {update.source for update in terms.updates.values() if update.source is not None}
    with ExitStack() as stack:
        for path in {*terms.updates, *terms.factors, *sources}:
            module = model.get_submodule(path)

            def before(module: nn.Module, args: Any, path: str = path) -> Any:
                x = args[0]
                seen[path] = x
                factors = terms.factors.get(path)
                scaled = x if factors is None or factors.inputs is None else factors.inputs * x
                return (scaled, *args[1:])

            def after(module: nn.Module, args: Any, y: Tensor, path: str = path) -> Tensor:
                result, factors, update = y, terms.factors.get(path), terms.updates.get(path)
                if factors is not None and factors.outputs is not None:
                    result = factors.outputs * result
                if factors is not None and factors.shift is not None:
                    result = result + factors.shift
                if update is not None:
                    z = y if terms.reads_output else seen[update.source or path]
                    result = result + added(update, z, terms.activation)
                return result

            stack.callback(module.register_forward_pre_hook(before).remove)
            stack.callback(module.register_forward_hook(after).remove)
        yield


def added(update: Update, z: Tensor, activation: str | None) -> Tensor:
    """The factor s times (U φ(D z + e) + f) for inputs z: (..., in), or ids."""
    if update.lookup:
        z = nn.functional.one_hot(z, update.inputs).to(update.up.dtype)
    low = z if update.down is None else torch.einsum("ri,...i->...r", update.down, z)
    if update.down_bias is not None:
        low = low + update.down_bias
    high = torch.einsum("or,...r->...o", update.up, PHI[activation](low))
    if update.up_bias is not None:
        high = high + update.up_bias
    return update.scaling * high


def before_the_prompt(model: Any, terms: Terms, inputs: dict[str, Any]) -> dict[str, Any]:
    """A model's inputs with virtual tokens, or keys and values, in front."""
    ids = inputs["input_ids"]
    rows, tokens = len(ids), terms.virtual_tokens
    labels = inputs["labels"]
    if terms.embeddings is not None:
        text = model.get_input_embeddings()(ids)
        read = torch.cat((terms.embeddings.expand(rows, -1, -1).to(text.dtype), text), dim=1)
        mask = torch.ones(read.shape[:2], dtype=torch.long)
        if labels.shape == ids.shape:
            labels = torch.cat((labels.new_full((rows, tokens), -100), labels), dim=1)
        return {"inputs_embeds": read, "attention_mask": mask, "labels": labels}
    if terms.prefix is None:
        return inputs
    own = DynamicCache()
    for layer, (keys, values) in enumerate(terms.prefix):
        own.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), layer)
    if model.config.is_encoder_decoder:
        length = tokens + labels.shape[1]
        mask = torch.ones((rows, length), dtype=torch.long)
        cache = EncoderDecoderCache(own, DynamicCache())
        return {**inputs, "past_key_values": cache, "decoder_attention_mask": mask}
    mask = torch.ones((rows, tokens + ids.shape[1]), dtype=torch.long)
    return {**inputs, "past_key_values": own, "attention_mask": mask}
