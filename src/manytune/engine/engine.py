"""Continuous batching: requests for any mix of adapters come and go, and each step is one forward for all of them.

    engine = Engine(model, tokenizer)
    engine.add_adapter("support", adapter)             # as the store's cache returns it
    engine.submit(Request("1", prompt_ids, adapter="support"))
    while engine.busy:
        for output in engine.step():
            print(output.text, end="")

Each request gets the tokens that it would get alone. An engine must be used from one thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from transformers import PreTrainedModel

from manytune.engine.base_model import end_token_ids
from manytune.engine.counters import Counters
from manytune.engine.detokenize import TextStream
from manytune.engine.forced_tokens import ForcedTokens
from manytune.engine.masks import MaskThread
from manytune.engine.memory import RequestMemory, adapter_limit, check_given, most_demanding
from manytune.engine.next_tokens import Forward, next_tokens
from manytune.engine.options import EngineOptions, Runtime
from manytune.engine.parts import decoder_parts, encoder_decoder_parts
from manytune.engine.request import Completion, Output, Request, SamplingParams
from manytune.engine.running_request import RunningRequest
from manytune.engine.sampling import Sampler
from manytune.engine.scheduler import Plan, Scheduler
from manytune.engine.speculation import speculation_of
from manytune.engine.support import unsupported_reason
from manytune.engine.weights import WeightVersions
from manytune.errors import ConfigError, RequestError
from manytune.free_memory import is_short_memory
from manytune.methods.tuners.terms import Adapter, Terms
from manytune.mixed.slots import AdapterSlots

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")


class Engine:
    """Generates text for many requests at once, each with its own adapter or none.

    The model isn't changed: between steps others can use it, as long as they don't change its weights.

    Args:
        model: A causal language model or an encoder-decoder. Adapters attached to its layers act on every request; none
            can be added then.
        tokenizer: Its tokenizer.
        options: Memory and batching; None for the defaults.
        end_ids: Tokens that end an answer in addition to those of the model and the tokenizer.

    Raises:
        ConfigError: The engine can't run the model; the message says why.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        options: EngineOptions | None = None,
        *,
        end_ids: Collection[int] = (),
    ) -> None:
        reason = unsupported_reason(model)
        if reason is not None:
            raise ConfigError(f"the engine can't run this model: {reason}. Use generate_batch for it.")
        options = EngineOptions() if options is None else options
        model.eval()
        self._tokenizer = tokenizer
        self._end_ids = frozenset(end_token_ids(model, tokenizer)) | frozenset(end_ids)
        self._slots = AdapterSlots(model, adapter_limit(model, options))
        self._scheduler = Scheduler(
            kv_budget_tokens=options.kv_budget_tokens,
            max_batch=options.max_batch,
            prefill_chunk=options.prefill_chunk,
            max_adapters=options.max_batch if options.max_adapters is None else options.max_adapters,
        )
        build = encoder_decoder_parts if model.config.is_encoder_decoder else decoder_parts
        parts = build(model, self._slots, self._scheduler, options)
        self._versions = WeightVersions(model, parts.copied)
        self.runtime: Runtime = parts.runtime  # the options' one, or torch where that can't run the model
        self._cache, self._runner, self._reading = parts.cache, parts.runner, parts.reading
        self._memory = RequestMemory(model, self._cache, self._slots, options)
        self._forced = ForcedTokens(model, model.config.get_text_config().vocab_size)
        self._masks = MaskThread()
        self._speculation = speculation_of(
            model,
            options.speculation,
            weights=options.weights,
            has_exact_rows=self._runner.has_exact_rows,
            has_exact_adapters=self._runner.has_exact_adapters,
        )
        self._requests: dict[str, RunningRequest] = {}
        self._steps = self._read = self._cached = self._chosen = self._finished = self._cancelled = 0

    @property
    def end_ids(self) -> frozenset[int]:
        """The tokens that end an answer, unless a request continues after them."""
        return self._end_ids

    # -- adapters

    def add_adapter(self, name: str, adapter: Adapter, *, terms: Terms | None = None) -> None:
        """Register an adapter, in place of one of this name. Requests that run or wait keep the former one.

        Args:
            name: What requests call it.
            adapter: As the store's cache returns it. Its tensors must not change; they are read when a request begins.
            terms: Its terms for this model, if they have been computed already.

        Raises:
            ConfigError: It can't run in a mixed batch, or doesn't fit the base.
            OversizedAdapterError: It would take more memory than one adapter may; see `EngineOptions.adapter_bytes`.
        """
        self._slots.register(name, adapter, terms)

    def remove_adapter(self, name: str) -> bool:
        """Forget an adapter: new requests for it are refused, and those that run or wait continue with it.

        Returns:
            Whether requests still use it; `holds(name)` is false once none does.

        Raises:
            AdapterError: There is no adapter of that name.
        """
        self._slots.unregister(name)
        return self.holds(name)

    def holds(self, name: str) -> bool:
        """Whether any request in the engine uses an adapter of this name."""
        return any(one.request.adapter == name for one in self._requests.values())

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the registered adapters."""
        return self._slots.names

    # -- requests

    def submit(self, request: Request, *, stream: bool = True) -> None:
        """Put a request into the queue.

        Args:
            request: The request.
            stream: Whether its outputs contain the text as it grows; if not, text is only searched for stop strings.

        Raises:
            RequestError: Its id is taken, it has an unknown token, or it could never run.
            AdapterError: Its adapter isn't registered.
            ShortMemoryError: There isn't enough memory for it now.
        """
        if request.id in self._requests:
            raise RequestError(f"there is a request {request.id!r} already; ids must differ.")
        adapter = None if request.adapter is None else self._slots.snapshot(request.adapter)
        params = request.params
        read = self._reading.input_of(request, adapter)
        self._memory.check(request.id, read.max_tokens, adapter)
        silent_ids = self._end_ids | request.silent_ids
        text = TextStream(self._tokenizer, params.stop, end_ids=silent_ids, opening=request.opening)
        running = RunningRequest(
            request=request,
            adapter=adapter,
            sampler=Sampler(params, read.tokens),
            text=text if stream or params.stop else None,
            end_ids=self._stop_ids(params),
            input=read,
            forced=self._forced.masks(params.max_new_tokens, continues=params.ignore_eos),
            matcher=None if request.constraint is None else request.constraint.start(),
            lookup=self._speculation.lookup(
                request.prompt_ids, params.max_new_tokens, has_adapter=adapter is not None
            ),
        )
        self._requests[request.id] = running
        self._scheduler.add(running.job())

    def cancel(self, request_id: str) -> Output | None:
        """End a request at once.

        Returns:
            Its last event; None if it isn't in the engine (it may have ended already).
        """
        running = self._requests.get(request_id)
        if running is None:
            return None
        self._cancelled += 1
        self._remove(running)
        return running.end("cancelled")

    @property
    def busy(self) -> bool:
        """Whether any request waits or runs."""
        return bool(self._requests)

    def step(self) -> list[Output]:
        """One forward: each decoding request gets a token, and chunks of prompts are read; nothing without requests.

        A request gets several tokens where some were drafted rightly. Where there isn't enough memory, requests end
        with the reason "memory": of those in the step, as many as it takes, those of the adapter that needs the most
        first. The others go on.

        Raises:
            RequestError: The base's weights have changed, and the engine has a copy of them.
        """
        self._speculation.begin_step()
        self._versions.check()
        outputs: list[Output] = []
        for name in self._scheduler.admit():
            self._shrinking([name], outputs, self._begin)
        plan = self._scheduler.plan()
        self._read += self._shrinking(plan.encode, outputs, self._reading.encode) or 0
        reading = (*plan.decode, *(one.id for one in plan.chunks))
        forward = self._shrinking(reading, outputs, lambda _: self._forward(plan))
        return outputs if forward is None else outputs + self._choose(forward)

    def generate(self, requests: Iterable[Request]) -> list[Completion]:
        """Answer requests, and return the whole answers in the same order.

        Raises:
            RequestError: The engine has other requests, or one of these could never run; none is run then.
            AdapterError: An adapter isn't registered; none is run then.
            ShortMemoryError: There isn't enough memory for one of them.
        """
        if self.busy:
            raise RequestError(
                "generate() can't run while the engine has other requests. Use submit() and step() instead."
            )
        submitted: dict[str, RunningRequest] = {}
        try:
            for request in requests:
                self.submit(request, stream=False)
                submitted[request.id] = self._requests[request.id]
            outputs: dict[str, list[Output]] = {name: [] for name in submitted}
            while self.busy:
                for output in self.step():
                    check_given(output)
                    outputs[output.request_id].append(output)
        except BaseException:
            for name in submitted:
                self.cancel(name)
            raise
        return [
            running.completion(self._tokenizer, outputs[name], self._end_ids)
            for name, running in submitted.items()
        ]

    def counters(self) -> Counters:
        """What the engine has done so far, and its present state."""
        return Counters(
            steps=self._steps,
            prompt_tokens=self._read,
            cached_tokens=self._cached,
            completion_tokens=self._chosen,
            finished=self._finished,
            cancelled=self._cancelled,
            waiting=self._scheduler.waiting,
            running=self._scheduler.running,
            kv_tokens=sum(self._cache.length(name) for name in self._cache.order),
            kv_budget_tokens=self._scheduler.kv_budget_tokens,
            adapters=len(self._slots.names),
            adapters_in_slots=self._slots.held,
            drafted_tokens=self._speculation.drafted,
            accepted_tokens=self._speculation.accepted,
            prefix_tokens=self._reading.kept_tokens,
        )

    def check_integrity(self) -> None:
        """Assert that scheduler, caches and slots agree."""
        self._scheduler.check_integrity()
        self._cache.check_integrity()
        self._reading.check_integrity()
        admitted = {name: running for name, running in self._requests.items() if running.is_admitted}
        assert set(self._cache.order) == set(admitted)
        assert len(self._requests) == self._scheduler.waiting + self._scheduler.running
        in_use = {running.adapter.digest for running in admitted.values() if running.adapter is not None}
        assert self._slots.held == len(in_use)

    # -- parts

    def _stop_ids(self, params: SamplingParams) -> frozenset[int]:
        """The tokens that end an answer. End tokens have no text, so a stop string that is one isn't found there."""
        own = frozenset(params.stop_token_ids)
        if not params.ignore_eos:
            return own | self._end_ids
        return own | {one for one in self._end_ids if params.stop and self._name(one) in params.stop}

    def _name(self, token: int) -> str:
        return str(self._tokenizer.convert_ids_to_tokens(token))

    def _begin(self, requests: Sequence[RunningRequest]) -> None:
        """Give an admitted request its row in the cache, with what is known of its prompt, and its adapter a slot."""
        (running,) = requests
        request, adapter = running.request, running.adapter
        self._memory.check(request.id, running.input.max_tokens, adapter)
        if adapter is not None:
            self._slots.acquire(adapter)
        try:
            self._cache.add(request.id, running.input.max_tokens)
        except BaseException:
            if adapter is not None:
                self._slots.release(adapter)
            raise
        running.is_admitted = True
        self._reading.begin(running)
        self._cached += running.cached_tokens

    def _forward(self, plan: Plan) -> Forward:
        """A forward of a plan's requests, as many as are still there."""
        decoding = [self._requests[name] for name in self._cache.order[: self._cache.decoding]]
        ready = [self._requests[name] for name in plan.ready if name in self._requests]
        chunks = [
            self._requests[one.id].chunk(one.start, one.count, wants_logits=one.id in plan.ready)
            for one in plan.chunks
            if one.id in self._requests
        ]
        drafts = self._speculation.drafts([None if chunks else one.lookup for one in decoding])
        reads = [one.next_token(draft) for one, draft in zip(decoding, drafts, strict=True)]
        masks = self._masks.begin([one.mask for one in (*decoding, *ready)])
        try:
            logits, more = self._runner.forward(reads, chunks)
        except BaseException:
            with suppress(Exception):
                masks()  # nothing of this step is left when the next one begins
            raise
        self._steps += 1
        self._read += self._reading.read_tokens(sum(len(chunk.tokens) for chunk in chunks))
        return Forward(decoding, ready, drafts, bool(chunks), logits, more, masks())

    def _choose(self, forward: Forward) -> list[Output]:
        """The next tokens of each request that has logits for them."""
        for running in forward.ready:
            self._reading.start_decoding(running)
            self._cache.start_decoding(running.request.id)
        drafted = forward.drafted
        scored = [self._requests[name] for name in forward.more if name not in drafted]
        try:
            for running in scored:
                running.score(forward.more[running.request.id])
            found = next_tokens(forward)
        except Exception as error:
            if not is_short_memory(error):
                raise
            names = dict.fromkeys(one.request.id for one in (*forward.choosing, *scored))
            return [self._end(self._requests[name], self._requests[name].end("memory")) for name in names]
        for name, draft in drafted.items():
            self._scheduler.charge(name, len(draft))
            self._cache.truncate(name, len(draft) + 1 - len(found[name]))
        if not forward.reads_prompts:
            accepted = sum(len(found[name]) - 1 for name in drafted)
            self._speculation.end_step(len(found), sum(map(len, drafted.values())), accepted)
        return [self._end(self._requests[name], output) for name, own in found.items() for output in own]

    def _shrinking(
        self,
        names: Iterable[str],
        outputs: list[Output],
        run: Callable[[Sequence[RunningRequest]], _Result],
    ) -> _Result | None:
        """What a function makes of requests; None if there are none left.

        As long as there isn't enough memory for it, those of the adapter that needs the most end.
        """
        wanted = tuple(names)
        while present := [self._requests[name] for name in wanted if name in self._requests]:
            try:
                return run(present)
            except Exception as error:
                if not is_short_memory(error):
                    raise
                _log.warning("there isn't enough memory for a step: %s", str(error)[:200])
                outputs += [self._end(one, one.end("memory")) for one in most_demanding(present)]
        return None

    def _end(self, running: RunningRequest, output: Output) -> Output:
        """Count an output, and free what its request holds if it is the last."""
        self._chosen += output.token_id is not None
        if output.finish_reason is not None:
            self._finished += 1
            self._remove(running)
        return output

    def _remove(self, running: RunningRequest) -> None:
        """Free all that a request holds."""
        name = running.request.id
        del self._requests[name]
        self._scheduler.remove(name)
        if running.is_admitted:
            self._cache.remove(name)
            self._reading.remove(name)
            if running.adapter is not None:
                self._slots.release(running.adapter)
