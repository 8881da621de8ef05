"""How requests are read: by an encoder as a whole, then the decoder begins."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

from manytune.engine.encoder_decoder.limits import EncoderDecoderLimits
from manytune.engine.encoder_decoder.runner import EncoderDecoderRunner
from manytune.engine.encoder_decoder.sources import Sources
from manytune.engine.kv_cache import KVCache
from manytune.engine.model_input import ModelInput, Source
from manytune.engine.request import Request
from manytune.engine.running_request import RunningRequest
from manytune.engine.scheduler import Scheduler
from manytune.mixed.stacks import Snapshot, digest_of


class SourceReading:
    """The reading of an encoder-decoder; see `Reading`.

    Args:
        cache: Keys and values of the decoder's tokens.
        sources: Those of what the encoder has read.
        scheduler: The scheduler.
        limits: What requests may have.
        runner: Runs the encoder.
        start: The token that answers begin with.
    """

    def __init__(
        self,
        cache: KVCache,
        sources: Sources,
        scheduler: Scheduler,
        limits: EncoderDecoderLimits,
        runner: EncoderDecoderRunner,
        *,
        start: int,
    ) -> None:
        self._cache = cache
        self._sources = sources
        self._scheduler = scheduler
        self._limits = limits
        self._runner = runner
        self._start = start

    @property
    def kept_tokens(self) -> int:
        """See `Reading.kept_tokens`."""
        return self._sources.kept_tokens

    def input_of(self, request: Request, adapter: Snapshot | None) -> ModelInput:
        """See `Reading.input_of`: the prompt for the encoder, after the adapter's virtual tokens."""
        embeddings = None if adapter is None else adapter.terms.embeddings
        prefix = None if adapter is None else adapter.terms.prefix
        source = Source(
            key=_key(request.tenant, digest_of(adapter), request.prompt_ids),
            tokens=request.prompt_ids,
            embeddings=embeddings,
        )
        self._limits.check_source(request, source.length)
        virtual_tokens = 0 if prefix is None else prefix.shape[3]
        return ModelInput(
            tokens=(self._start,),
            max_tokens=self._limits.answer_tokens(request, virtual_tokens=virtual_tokens),
            source=source,
        )

    def begin(self, running: RunningRequest) -> None:
        """See `Reading.begin`: what the encoder made of an equal input; and the adapter's keys and values."""
        source, request, adapter = running.input.source, running.request, running.adapter
        assert source is not None
        if self._sources.add(request.id, source.key, source.length):
            running.cached_tokens = len(source.tokens)
            self._scheduler.skip_source(request.id)
        if adapter is not None and adapter.terms.prefix is not None:
            self._cache.write(request.id, adapter.terms.prefix)

    def encode(self, running: Sequence[RunningRequest]) -> int:
        """See `Reading.encode`: equal inputs are read once."""
        alike: dict[bytes, list[RunningRequest]] = {}
        for one in running:
            assert one.input.source is not None
            alike.setdefault(one.input.source.key, []).append(one)
        if not alike:
            return 0
        firsts = [(ones[0].input.source, ones[0].adapter) for ones in alike.values()]
        read = 0
        encoded = self._runner.encode([(one, adapter) for one, adapter in firsts if one is not None])
        for (key, ones), found in zip(alike.items(), encoded, strict=True):
            read += len(ones[0].request.prompt_ids)
            for place, one in enumerate(ones):
                self._sources.write(one.request.id, key, found.values, is_shared=found.is_finite)
                one.has_failed |= not found.is_finite
                one.cached_tokens = len(one.request.prompt_ids) if place else 0
        return read

    def read_tokens(self, tokens: int) -> int:
        """See `Reading.read_tokens`: none, as the decoder reads no prompts."""
        return 0

    def start_decoding(self, running: RunningRequest) -> None:
        """See `Reading.start_decoding`."""
        self._sources.cache.start_decoding(running.request.id)

    def remove(self, request_id: str) -> None:
        """See `Reading.remove`."""
        self._sources.remove(request_id)

    def check_integrity(self) -> None:
        """See `Reading.check_integrity`."""
        self._sources.check_integrity()
        assert self._sources.cache.order == self._cache.order
        assert self._sources.cache.decoding == self._cache.decoding


def _key(tenant: str, digest: str | None, tokens: Sequence[int]) -> bytes:
    """Identifies an input of one tenant that is read with one adapter: nobody learns from timing what others asked."""
    state = hashlib.sha256(repr((tenant, digest)).encode())
    state.update(array("q", tokens).tobytes())
    return state.digest()
