"""The parts of an encoder-decoder that the engine runs on their own, and which models have them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from manytune.engine.base_model import start_id
from manytune.methods.tuners.position_layers import POSITION_TABLE
from manytune.mixed.layer_groups import CROSS_ATTENTION

#: What the engine runs, by `model_type`: attention goes through transformers' registry with its keyword arguments, and
#: positions are relative, or an argument of the module that embeds them.
FAMILIES = (
    "t5",
    "mt5",
    "umt5",
    "bart",
    "mbart",
    "plbart",
    "marian",
    "pegasus",
    "blenderbot",
    "blenderbot-small",
)


@dataclass(frozen=True)
class Structure:
    """Parts of an encoder-decoder.

    Attributes:
        encoder: Reads inputs.
        cross: Paths of what computes keys and values of the encoder's states, in each layer of the decoder.
        tables: Paths of the modules that embed positions, if there are any.
        heads: Heads of the decoder's attention.
        head_dim: Size of a head.
        start: The token that answers begin with.
        positions: Tokens that the encoder, and the decoder, may read at most; None for no limit.
    """

    encoder: Any
    cross: tuple[tuple[str, str], ...]
    tables: tuple[str, ...]
    heads: int
    head_dim: int
    start: int
    positions: int | None


def encoder_decoder_obstacle(model: PreTrainedModel) -> str | None:
    """Why the engine can't run an encoder-decoder, as a clause such as "it has an encoder"; None if it can."""
    kind = model.config.model_type
    if kind not in FAMILIES:
        return f"it has an encoder, and is of type {kind}: of these the engine runs {', '.join(FAMILIES)}"
    if start_id(model) is None:
        return "its generation settings name no decoder_start_token_id"
    if len(list(_cross_attention(model))) != _decoder_layers(model):
        return "its cross-attention isn't found in each layer of its decoder"
    missing = [path for path, module in _tables(model) if not _takes_positions(module)]
    return f"{missing[0]} takes no position_ids" if missing else None


def structure_of(model: PreTrainedModel) -> Structure:
    """The parts of a model for which `encoder_decoder_obstacle` is None."""
    config: Any = model.config
    start = start_id(model)
    assert start is not None
    heads = getattr(config, "decoder_attention_heads", None) or config.num_attention_heads
    return Structure(
        encoder=model.get_encoder(),
        cross=tuple(_cross_attention(model)),
        tables=tuple(path for path, _ in _tables(model)),
        heads=heads,
        head_dim=getattr(config, "d_kv", None) or config.d_model // heads,
        start=start,
        positions=getattr(config, "max_position_embeddings", None),
    )


def _cross_attention(model: PreTrainedModel) -> Iterator[tuple[str, str]]:
    """Paths of keys and values, in the order of the layers."""
    for path, module in model.named_modules():
        if path.rpartition(".")[2] not in CROSS_ATTENTION:
            continue
        for key, value in (("k", "v"), ("k_proj", "v_proj")):
            if isinstance(getattr(module, key, None), nn.Module):
                yield f"{path}.{key}", f"{path}.{value}"


def _decoder_layers(model: PreTrainedModel) -> int:
    config: Any = model.config
    layers: int = getattr(config, "num_decoder_layers", None) or config.decoder_layers
    return layers


def _tables(model: PreTrainedModel) -> Iterator[tuple[str, nn.Module]]:
    return (
        (path, module) for path, module in model.named_modules() if path.rpartition(".")[2] == POSITION_TABLE
    )


def _takes_positions(module: nn.Module) -> bool:
    return "position_ids" in inspect.signature(type(module).forward).parameters
