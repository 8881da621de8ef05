"""How requests are read: a decoder's prompts, of which cached prefixes are skipped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from manytune.engine.kv_cache import KVCache
from manytune.engine.limits import RequestLimits
from manytune.engine.model_input import ModelInput
from manytune.engine.prefix_cache import BLOCK, PrefixCache, block_keys
from manytune.engine.request import Request
from manytune.engine.running_request import RunningRequest
from manytune.engine.scheduler import Scheduler
from manytune.free_memory import is_short_memory
from manytune.mixed.stacks import Snapshot, digest_of


class Reading(Protocol):
    """What a kind of model does with requests up to their first token."""

    @property
    def kept_tokens(self) -> int:
        """Tokens whose keys and values are kept for later requests."""

    def input_of(self, request: Request, adapter: Snapshot | None) -> ModelInput:
        """What the model reads of a request.

        Raises:
            RequestError: The request can't be run.
            ContextLengthError: It could never fit.
        """

    def begin(self, running: RunningRequest) -> None:
        """Fill the row of an admitted request with what is known of its input, and have the scheduler skip it.

        Mutates: the caches, and the request's `cached_tokens`.
        """

    def encode(self, running: Sequence[RunningRequest]) -> int:
        """Run an encoder on the inputs of requests; returns the number of tokens that it read."""

    def read_tokens(self, tokens: int) -> int:
        """How many of the tokens that the decoder has just read belong to prompts."""

    def start_decoding(self, running: RunningRequest) -> None:
        """Note that all of a request's input has been read."""

    def remove(self, request_id: str) -> None:
        """Forget an admitted request."""

    def check_integrity(self) -> None:
        """Assert that the bookkeeping is consistent."""


class PromptReading:
    """The reading of a decoder.

    Args:
        cache: Keys and values.
        scheduler: The scheduler.
        limits: What requests may have.
        prefix_cache_tokens: Prompt tokens to keep.
    """

    def __init__(
        self, cache: KVCache, scheduler: Scheduler, limits: RequestLimits, *, prefix_cache_tokens: int
    ) -> None:
        self._cache = cache
        self._scheduler = scheduler
        self._limits = limits
        self._prefixes = PrefixCache(prefix_cache_tokens)

    @property
    def kept_tokens(self) -> int:
        """See `Reading.kept_tokens`."""
        return self._prefixes.tokens

    def input_of(self, request: Request, adapter: Snapshot | None) -> ModelInput:
        """See `Reading.input_of`: the prompt, after the adapter's virtual tokens."""
        virtual_tokens = 0 if adapter is None else adapter.terms.virtual_tokens
        keys: tuple[bytes, ...] = ()
        max_tokens = self._limits.max_tokens(request, virtual_tokens=virtual_tokens)
        if self._prefixes.budget:
            keys = block_keys(request.tenant, digest_of(adapter), request.prompt_ids)
        return ModelInput(
            tokens=request.prompt_ids,
            max_tokens=max_tokens,
            embeddings=None if adapter is None else adapter.terms.embeddings,
            prefix_keys=keys,
        )

    def begin(self, running: RunningRequest) -> None:
        """See `Reading.begin`: the longest cached prefix, or the adapter's keys and values."""
        request, adapter, read = running.request, running.adapter, running.input
        # The last token is always read: its logits choose the first token of the answer. All are if they are scored.
        is_scored = request.params.prompt_logprobs is not None
        known_keys = () if is_scored else read.prefix_keys[: (len(read.tokens) - 1) // BLOCK]
        known = self._prefixes.find(known_keys)
        if known is not None:
            running.cached_tokens, values = known
            self._cache.write(request.id, values)
            skipped = read.embedded_tokens + running.cached_tokens
            self._scheduler.skip(request.id, skipped, running.cached_tokens // BLOCK)
        elif adapter is not None and adapter.terms.prefix is not None:
            self._cache.write(request.id, adapter.terms.prefix)

    def encode(self, running: Sequence[RunningRequest]) -> int:
        """See `Reading.encode`: there is no encoder."""
        assert not running
        return 0

    def read_tokens(self, tokens: int) -> int:
        """See `Reading.read_tokens`: all of them."""
        return tokens

    def start_decoding(self, running: RunningRequest) -> None:
        """See `Reading.start_decoding`: keep the prompt's prefix."""
        adapter, name = running.adapter, running.request.id
        try:
            self._prefixes.store(
                running.input.prefix_keys,
                virtual_tokens=0 if adapter is None else adapter.terms.virtual_tokens,
                read=lambda tokens: self._cache.read(name, tokens),
            )
        except Exception as error:
            if not is_short_memory(error):  # without the memory to keep it, it is read again
                raise

    def remove(self, request_id: str) -> None:
        """See `Reading.remove`: prefixes stay."""

    def check_integrity(self) -> None:
        """See `Reading.check_integrity`."""
        self._prefixes.check_integrity()
