"""What of an engine depends on the kind of its model: a decoder, or an encoder with a decoder."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import torch
from transformers import PreTrainedModel

from manytune.engine.encoder_decoder.limits import EncoderDecoderLimits
from manytune.engine.encoder_decoder.runner import EncoderDecoderRunner
from manytune.engine.encoder_decoder.source_reading import SourceReading
from manytune.engine.encoder_decoder.sources import Sources
from manytune.engine.encoder_decoder.structure import structure_of
from manytune.engine.kv_cache import KVCache
from manytune.engine.limits import RequestLimits
from manytune.engine.openvino.availability import openvino_obstacle
from manytune.engine.options import EngineOptions, Runtime
from manytune.engine.prompt_reading import PromptReading, Reading
from manytune.engine.runner import Runner
from manytune.engine.scheduler import Scheduler
from manytune.engine.weights import linear_layers, rounding_of
from manytune.errors import ConfigError
from manytune.mixed.slots import AdapterSlots
from manytune.own_dtype import runs_in_own_dtype

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """The parts of an engine that differ.

    Attributes:
        cache: Keys and values of the decoder's tokens.
        runner: Runs the model.
        reading: What requests go through before their first token.
        copied: Paths of the layers whose weights the runner has a copy of.
        runtime: What computes the forwards.
    """

    cache: KVCache
    runner: Runner
    reading: Reading
    copied: Collection[str]
    runtime: Runtime


def decoder_parts(
    model: PreTrainedModel, slots: AdapterSlots, scheduler: Scheduler, options: EngineOptions
) -> Parts:
    """The parts for a decoder.

    Args:
        model: The base.
        slots: The adapters.
        scheduler: The scheduler.
        options: Memory and batching.
    """
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    sizes = {
        "layers": config.num_hidden_layers,
        "heads": getattr(config, "num_key_value_heads", None) or heads,
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // heads,
    }
    limits = RequestLimits(
        **_limits(model, options), positions=getattr(config, "max_position_embeddings", None)
    )
    runner, copied = _openvino_runner(model, slots, options, sizes)
    runtime: Runtime = "openvino"
    if runner is None:
        weights = linear_layers(model, options.weights)
        runner, copied, runtime = (
            Runner(model, _cache(model, options, **sizes), slots, weights),
            weights,
            "torch",
        )
    reading = PromptReading(runner.cache, scheduler, limits, prefix_cache_tokens=options.prefix_cache_tokens)
    return Parts(runner.cache, runner, reading, copied, runtime)


def _openvino_runner(
    model: PreTrainedModel, slots: AdapterSlots, options: EngineOptions, sizes: Mapping[str, int]
) -> tuple[Runner | None, Collection[str]]:
    """A runner in OpenVINO and the layers that it has a copy of; None where torch has to run the model."""
    if options.runtime == "torch":
        return None, ()
    if options.runtime != "openvino":
        raise ConfigError(f"runtime={options.runtime!r}: expected one of {', '.join(get_args(Runtime))}.")
    rounding = rounding_of(options.weights)
    reason = openvino_obstacle(model)
    if reason is None:
        from manytune.engine.openvino.paged_cache import PagedCache
        from manytune.engine.openvino.runner import OpenVINORunner

        try:
            # Attention in bfloat16 reads keys and values in it.
            dtype = torch.bfloat16 if rounding == "bf16" else torch.float32
            cache = PagedCache(**sizes, budget=options.kv_budget_tokens, dtype=dtype)
            runner = OpenVINORunner(model, cache, slots, rounding)
        except ConfigError as error:
            reason = str(error)
        else:
            return runner, runner.copied
    _say_that_torch_runs(reason)
    return None, ()


def encoder_decoder_parts(
    model: PreTrainedModel, slots: AdapterSlots, scheduler: Scheduler, options: EngineOptions
) -> Parts:
    """The parts for an encoder-decoder; see `decoder_parts`."""
    if options.runtime == "openvino":
        _say_that_torch_runs("the model has an encoder, and decoders alone are converted")
    weights = linear_layers(model, options.weights)
    structure = structure_of(model)
    sizes = {"layers": len(structure.cross), "heads": structure.heads, "head_dim": structure.head_dim}
    cache = _cache(model, options, **sizes)
    sources = Sources(_cache(model, options, **sizes), budget=options.prefix_cache_tokens)
    runner = EncoderDecoderRunner(model, structure, cache, sources.cache, slots, weights)
    limits = EncoderDecoderLimits(**_limits(model, options), positions=structure.positions)
    reading = SourceReading(cache, sources, scheduler, limits, runner, start=structure.start)
    return Parts(cache, runner, reading, weights, "torch")


def _say_that_torch_runs(reason: str) -> None:
    _log.warning("runtime='openvino': torch runs the model, since %s.", reason)


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
