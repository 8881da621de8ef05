"""What memory an engine may give to an adapter, and whether there is enough of it for one more request."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from transformers import PreTrainedModel

from manytune.engine.kv_cache import KVCache
from manytune.engine.options import EngineOptions
from manytune.engine.request import Output
from manytune.engine.running_request import RunningRequest
from manytune.engine.speculation import MOST_OF_STEP
from manytune.errors import ShortMemoryError
from manytune.free_memory import require_memory
from manytune.mixed.memory_estimate import AdapterLimit, bytes_for_one, running_bytes
from manytune.mixed.slots import AdapterSlots
from manytune.mixed.stacks import Snapshot, digest_of


def adapter_limit(model: PreTrainedModel, options: EngineOptions) -> AdapterLimit:
    """What one adapter may take of an engine.

    Args:
        model: The base.
        options: The engine's.
    """
    positions = None
    if not model.config.is_encoder_decoder:
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    room = min(options.kv_budget_tokens, positions or options.kv_budget_tokens)
    return AdapterLimit(
        nbytes=bytes_for_one(model.device) if options.adapter_bytes is None else options.adapter_bytes,
        tokens=options.prefill_chunk + options.max_batch,
        virtual_tokens=room - 1,
    )


def step_bytes(model: PreTrainedModel, tokens: int, rows: int) -> int:
    """About the memory of a forward without adapters: a layer's activations, and the logits with their copies.

    Args:
        model: The base.
        tokens: Tokens that it reads.
        rows: Tokens whose logits are needed.
    """
    config = model.config.get_text_config()
    hidden = int(config.hidden_size)
    wide = int(getattr(config, "intermediate_size", None) or getattr(config, "d_ff", None) or 4 * hidden)
    return 4 * (tokens * (4 * hidden + 3 * wide) + 3 * rows * int(config.vocab_size))


class RequestMemory:
    """Whether the free memory is enough for requests on a CPU. Other devices refuse what they haven't by themselves.

    Args:
        model: The base.
        cache: Keys and values.
        slots: The adapters.
        options: The engine's.
    """

    def __init__(
        self, model: PreTrainedModel, cache: KVCache, slots: AdapterSlots, options: EngineOptions
    ) -> None:
        self._on_cpu = model.device.type == "cpu"
        self._cache = cache
        self._slots = slots
        rows = options.max_batch + (MOST_OF_STEP if options.speculation != "off" else 0)
        self._for_step = step_bytes(model, options.prefill_chunk + options.max_batch, rows)

    def check(self, request_id: str, max_tokens: int, adapter: Snapshot | None) -> None:
        """Refuse a request that there isn't enough memory for now: its keys and values, its adapter, and a step.

        Args:
            request_id: The request.
            max_tokens: The most tokens that it may have.
            adapter: Its adapter.

        Raises:
            ShortMemoryError: There isn't.
        """
        if not self._on_cpu:
            return
        needed = self._cache.needed(max_tokens) + self._for_step
        if adapter is not None:
            needed += self._slots.needed(adapter)
        require_memory(needed, f"request {request_id!r}")


def check_given(output: Output) -> None:
    """Raise for a request that ended because there wasn't enough memory for it.

    Raises:
        ShortMemoryError: It did.
    """
    if output.finish_reason == "memory":
        raise ShortMemoryError(
            f"request {output.request_id!r}: there isn't enough memory to go on. Answer fewer at once, allow shorter "
            "answers, or give the process more memory."
        )


def most_demanding(requests: Sequence[RunningRequest]) -> Iterable[RunningRequest]:
    """Those of the adapter that takes the most memory in a step; if none has an adapter, the longest one."""
    takes = {
        one.adapter.digest: running_bytes(one.adapter.terms, one.adapter.dtype, tokens=1024)
        for one in requests
        if one.adapter is not None
    }
    if not takes:
        return [max(requests, key=lambda one: one.input.max_tokens)]
    largest = max(takes, key=lambda digest: takes[digest])
    return [one for one in requests if digest_of(one.adapter) == largest]
