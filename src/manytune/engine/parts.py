"""What of an engine depends on the kind of its model: a decoder, or an encoder with a decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from manytune.engine.encoder_decoder.limits import EncoderDecoderLimits
from manytune.engine.encoder_decoder.runner import EncoderDecoderRunner
from manytune.engine.encoder_decoder.source_reading import SourceReading
from manytune.engine.encoder_decoder.sources import Sources
from manytune.engine.encoder_decoder.structure import structure_of
from manytune.engine.kv_cache import KVCache
from manytune.engine.limits import RequestLimits
from manytune.engine.options import EngineOptions
from manytune.engine.prompt_reading import PromptReading, Reading
from manytune.engine.runner import Runner
from manytune.engine.scheduler import Scheduler
from manytune.mixed.layers import Forward
from manytune.mixed.slots import AdapterSlots
from manytune.own_dtype import runs_in_own_dtype


@dataclass(frozen=True)
class Parts:
    """The parts of an engine that differ.

    Attributes:
        cache: Keys and values of the decoder's tokens.
        runner: Runs the model.
        reading: What requests go through before their first token.
    """

    cache: KVCache
    runner: Runner
    reading: Reading


def decoder_parts(
    model: PreTrainedModel,
    slots: AdapterSlots,
    weights: Mapping[str, Forward],
    scheduler: Scheduler,
    options: EngineOptions,
) -> Parts:
    """The parts for a decoder.

    Args:
        model: The base.
        slots: The adapters.
        weights: Forwards of its linear layers to use in place of their own, by path.
        scheduler: The scheduler.
        options: Memory and batching.
    """
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    cache = _cache(
        model,
        options,
        layers=config.num_hidden_layers,
        heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
    )
    limits = RequestLimits(
        **_limits(model, options), positions=getattr(config, "max_position_embeddings", None)
    )
    reading = PromptReading(cache, scheduler, limits, prefix_cache_tokens=options.prefix_cache_tokens)
    return Parts(cache, Runner(model, cache, slots, weights), reading)


def encoder_decoder_parts(
    model: PreTrainedModel,
    slots: AdapterSlots,
    weights: Mapping[str, Forward],
    scheduler: Scheduler,
    options: EngineOptions,
) -> Parts:
    """The parts for an encoder-decoder; see `decoder_parts`."""
    structure = structure_of(model)
    sizes = {"layers": len(structure.cross), "heads": structure.heads, "head_dim": structure.head_dim}
    cache = _cache(model, options, **sizes)
    sources = Sources(_cache(model, options, **sizes), budget=options.prefix_cache_tokens)
    runner = EncoderDecoderRunner(model, structure, cache, sources.cache, slots, weights)
    limits = EncoderDecoderLimits(**_limits(model, options), positions=structure.positions)
    reading = SourceReading(cache, sources, scheduler, limits, runner, start=structure.start)
    return Parts(cache, runner, reading)


def _cache(
    model: PreTrainedModel, options: EngineOptions, *, layers: int, heads: int, head_dim: int
) -> KVCache:
    return KVCache(
        layers=layers,
        heads=heads,
        head_dim=head_dim,
        budget=options.kv_budget_tokens,
        max_rows=options.max_batch,
        # Inside of `float32_activations` keys and values are wider than the weights.
        dtype=torch.float32 if any(map(runs_in_own_dtype, model.modules())) else model.dtype,
        device=model.device,
    )


def _limits(model: PreTrainedModel, options: EngineOptions) -> dict[str, Any]:
    vocabulary = model.config.get_text_config().vocab_size
    return {"vocabulary": vocabulary, "kv_budget_tokens": options.kv_budget_tokens}
