"""Continuous batching: requests for any mix of adapters come and go, and each step is one forward for all of them.

    engine = Engine(model, tokenizer)
    engine.add_adapter("support", adapter)             # as the store's cache gives it
    engine.submit(Request("1", prompt_ids, adapter="support"))
    while engine.busy:
        for output in engine.step():
            print(output.text, end="")

A row's tokens are those that it would have alone. The engine belongs to one thread.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from transformers import PreTrainedModel

from manytune.engine.counters import Counters
from manytune.engine.detokenize import TextStream
from manytune.engine.kv_cache import KVCache
from manytune.engine.prefix_cache import BLOCK, PrefixCache, block_keys
from manytune.engine.request import Completion, FinishReason, Output, Request, TokenLogprobs
from manytune.engine.runner import NextToken, PromptPiece, Runner
from manytune.engine.running_request import Entry
from manytune.engine.sampling import Chooser, choose_tokens
from manytune.engine.scheduler import Job, Piece, Scheduler
from manytune.engine.static_batch import end_token_ids
from manytune.engine.support import unsupported_reason
from manytune.engine.weights import Unchanged, Weights, linear_layers
from manytune.errors import ConfigError, RequestError
from manytune.methods.tuners.terms import Adapter
from manytune.mixed.slots import AdapterSlots
from manytune.mixed.stacks import Snapshot


class Engine:
    """Generates text for many requests at once, each with its own adapter or none.

    The model stays as it is: between steps it can be used by others, as long as its weights don't change.

    Args:
        model: A causal language model. Adapters attached to its layers act on every request; none can be added then.
        tokenizer: Its tokenizer.
        kv_budget_tokens: Tokens that the cache of keys and values has room for: running requests times the largest
            number of tokens that one of them may come to.
        max_batch: Requests that may run at once.
        prefill_chunk: Tokens of prompts that one step reads at most; more make answers begin sooner, fewer let
            those that have begun go on sooner.
        max_adapters: Different adapters that may run at once; by default as many as requests.
        prefix_cache_tokens: Tokens of prompts whose keys and values are kept for prompts that begin alike; 0 for none.
        end_ids: Tokens that end an answer besides the model's and the tokenizer's own.
        weights: `"packed"` keeps, on a CPU, a second copy of the linear layers' weights in the order that is multiplied
            fastest; `"int8"` and `"int4"` keep one in fewer bits, which rounds;
            `"plain"` keeps none.

    Raises:
        ConfigError: The engine can't run the model; says why.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        *,
        kv_budget_tokens: int = 32768,
        max_batch: int = 32,
        prefill_chunk: int = 512,
        max_adapters: int | None = None,
        prefix_cache_tokens: int = 0,
        end_ids: Collection[int] = (),
        weights: Weights = "packed",
    ) -> None:
        reason = unsupported_reason(model)
        if reason is not None:
            raise ConfigError(f"the engine can't run this model: {reason}. Use generate_batch for it.")
        model.eval()
        self._tokenizer = tokenizer
        self._end_ids = frozenset(end_token_ids(model, tokenizer)) | frozenset(end_ids)
        config = model.config.get_text_config()
        self._positions: int | None = getattr(config, "max_position_embeddings", None)
        self._vocabulary: int = config.vocab_size
        heads = config.num_attention_heads
        self._cache = KVCache(
            layers=config.num_hidden_layers,
            heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            budget=kv_budget_tokens,
            max_rows=max_batch,
            dtype=model.dtype,
            device=model.device,
        )
        self._slots = AdapterSlots(model)
        layers = linear_layers(model, weights)
        self._unchanged = Unchanged(model, layers)
        self._runner = Runner(model, self._cache, self._slots, layers)
        self._scheduler = Scheduler(
            kv_budget_tokens=kv_budget_tokens,
            max_batch=max_batch,
            prefill_chunk=prefill_chunk,
            max_adapters=max_batch if max_adapters is None else max_adapters,
        )
        self._prefixes = PrefixCache(prefix_cache_tokens)
        self._entries: dict[str, Entry] = {}
        self._steps = self._read = self._cached = self._chosen = self._finished = self._cancelled = 0

    # -- adapters

    def add_adapter(self, name: str, adapter: Adapter) -> None:
        """Make an adapter known, in place of one of this name. Requests that run or wait keep the former one.

        Args:
            name: What requests call it.
            adapter: As the store's cache gives it. Its tensors must not change; they are read when a request begins.

        Raises:
            ConfigError: It can't run in a mixed batch, or doesn't fit the base.
        """
        self._slots.register(name, adapter)

    def remove_adapter(self, name: str) -> bool:
        """Forget an adapter: new requests for it are refused, and those that run or wait go on with it.

        Returns:
            Whether requests still hold it; `holds(name)` says when none does.

        Raises:
            AdapterError: There is none of that name.
        """
        self._slots.unregister(name)
        return self.holds(name)

    def holds(self, name: str) -> bool:
        """Whether any request in the engine asked for an adapter by this name."""
        return any(entry.request.adapter == name for entry in self._entries.values())

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the known adapters."""
        return self._slots.names

    # -- requests

    def submit(self, request: Request, *, stream: bool = True) -> None:
        """Let a request wait for its turn.

        Args:
            request: What to answer.
            stream: Whether its outputs bring the text as it grows; without, only stop strings are looked for.

        Raises:
            RequestError: Its id is taken, or it could never run.
            AdapterError: Its adapter isn't known.
        """
        if request.id in self._entries:
            raise RequestError(f"there is a request {request.id!r} already; ids must differ.")
        snapshot = None if request.adapter is None else self._slots.snapshot(request.adapter)
        job = self._job(request, snapshot)
        params = request.params
        text = TextStream(self._tokenizer, params.stop) if stream or params.stop else None
        chooser = Chooser(params, request.prompt_ids)
        self._entries[request.id] = Entry(request, snapshot, chooser, text, job.beginning)
        self._scheduler.add(job)

    def cancel(self, request_id: str) -> Output | None:
        """End a request at once.

        Returns:
            Its last event; None if it isn't in the engine, as it may have ended already.
        """
        entry = self._entries.get(request_id)
        if entry is None:
            return None
        rest = entry.text.finish()[0] if entry.text is not None else ""
        self._cancelled += 1
        self._leave(entry)
        return Output(request_id, None, rest, "cancelled", None, entry.usage)

    @property
    def busy(self) -> bool:
        """Whether any request waits or runs."""
        return bool(self._entries)

    def step(self) -> list[Output]:
        """One forward: each request that decodes gets a token, and prompts are read on; nothing if there is none.

        Raises:
            RequestError: The base's weights have changed, and the engine has a copy of them.
        """
        self._unchanged.check()
        for name in self._scheduler.admit():
            self._begin(self._entries[name])
        plan = self._scheduler.plan()
        if not plan.decode and not plan.pieces:
            return []
        decoding = [self._entries[name] for name in self._cache.order[: self._cache.decoding]]
        ready = [self._entries[name] for name in plan.ready]
        logits = self._runner.forward(
            [NextToken(entry.request.id, entry.tokens[-1], entry.snapshot) for entry in decoding],
            [self._piece(piece, wanted=piece.id in plan.ready) for piece in plan.pieces],
        )
        self._steps += 1
        for entry in ready:
            self._keep_prefix(entry)
            self._cache.start_decoding(entry.request.id)
        choosing = decoding + ready
        chosen = choose_tokens(logits, [entry.chooser for entry in choosing])
        self._chosen += len(chosen)
        return [
            self._fail(entry) if found is None else self._take(entry, *found)
            for entry, found in zip(choosing, chosen, strict=True)
        ]

    def generate(self, requests: Iterable[Request]) -> list[Completion]:
        """Answer requests, and give their whole answers in the same order.

        Raises:
            RequestError: The engine is at work for others, or a request could never run; none is run then.
            AdapterError: An adapter isn't known.
        """
        if self.busy:
            raise RequestError(
                "generate() needs the engine for itself; it has requests. Submit yours instead."
            )
        asked = list(requests)
        entries: dict[str, Entry] = {}
        try:
            for request in asked:
                self.submit(request, stream=False)
                entries[request.id] = self._entries[request.id]
            texts = {name: "" for name in entries}
            logprobs: dict[str, list[TokenLogprobs]] = {name: [] for name in entries}
            reasons: dict[str, FinishReason] = {}
            while self.busy:
                for output in self.step():
                    texts[output.request_id] += output.text
                    if output.logprobs is not None:
                        logprobs[output.request_id].append(output.logprobs)
                    if output.finish_reason is not None:
                        reasons[output.request_id] = output.finish_reason
        except BaseException:
            for name in entries:
                self.cancel(name)
            raise
        return [
            entry.completion(
                self._tokenizer, texts[name], reasons[name], logprobs[name], ended=self._ends(entry)
            )
            for name, entry in entries.items()
        ]

    def counters(self) -> Counters:
        """What the engine has done so far, and how it stands."""
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
            prefix_tokens=self._prefixes.tokens,
        )

    def check_integrity(self) -> None:
        """Assert that all books agree."""
        self._scheduler.check_integrity()
        self._cache.check_integrity()
        self._prefixes.check_integrity()
        running = {name for name, entry in self._entries.items() if entry.running}
        assert set(self._cache.order) == running
        assert len(self._entries) == self._scheduler.waiting + self._scheduler.running
        held = {e.snapshot.digest for e in self._entries.values() if e.running and e.snapshot is not None}
        assert self._slots.held == len(held)

    # -- parts

    def _job(self, request: Request, snapshot: Snapshot | None) -> Job:
        for what, ids in (("prompt_ids", request.prompt_ids), ("logit_bias", request.params.logit_bias)):
            outside = [token for token in ids if not 0 <= token < self._vocabulary]
            if outside:
                raise RequestError(
                    f"request {request.id!r}: {what} names token {outside[0]}, and the model has "
                    f"{self._vocabulary} tokens."
                )
        virtual = 0 if snapshot is None else snapshot.terms.virtual_tokens
        prefix = 0 if snapshot is None or snapshot.terms.prefix is None else snapshot.terms.prefix.shape[3]
        room = virtual + len(request.prompt_ids) + request.params.max_new_tokens
        if self._positions is not None and room > self._positions:
            raise RequestError(
                f"request {request.id!r} has {virtual + len(request.prompt_ids)} tokens and "
                f"{request.params.max_new_tokens} to generate, but the model has {self._positions} positions; shorten "
                "the prompt or lower max_new_tokens."
            )
        job = Job(
            request.id,
            virtual - prefix + len(request.prompt_ids),
            room,
            request.tenant,
            None if snapshot is None else snapshot.digest,
            request.priority,
            self._beginning(request, snapshot),
        )
        if not self._scheduler.holds(job):
            raise RequestError(
                f"request {request.id!r} may come to {room} tokens, and the engine has room for "
                f"{self._scheduler.kv_budget_tokens}; shorten it, or give the engine a larger kv_budget_tokens."
            )
        return job

    def _beginning(self, request: Request, snapshot: Snapshot | None) -> tuple[bytes, ...]:
        if not self._prefixes.budget:
            return ()
        return block_keys(request.tenant, None if snapshot is None else snapshot.digest, request.prompt_ids)

    def _begin(self, entry: Entry) -> None:
        request, snapshot = entry.request, entry.snapshot
        virtual = 0 if snapshot is None else snapshot.terms.virtual_tokens
        entry.running = True
        if snapshot is not None:
            self._slots.acquire(snapshot)
        self._cache.add(request.id, virtual + len(request.prompt_ids) + request.params.max_new_tokens)
        # The last token is always read: its logits choose the first token of the answer.
        known = self._prefixes.find(entry.beginning[: (len(request.prompt_ids) - 1) // BLOCK])
        if known is not None:
            entry.cached, values = known
            self._cached += entry.cached
            self._cache.write(request.id, values)
            embedded = snapshot.terms.embeddings if snapshot is not None else None
            ahead = 0 if embedded is None else embedded.shape[0]
            self._scheduler.skip(request.id, entry.cached + ahead, entry.cached // BLOCK)
        elif snapshot is not None and snapshot.terms.prefix is not None:
            self._cache.write(request.id, snapshot.terms.prefix)

    def _piece(self, piece: Piece, *, wanted: bool) -> PromptPiece:
        """A stretch of virtual and real tokens, divided into its embeddings and its ids."""
        entry = self._entries[piece.id]
        virtual = None if entry.snapshot is None else entry.snapshot.terms.embeddings
        ahead = 0 if virtual is None else virtual.shape[0]
        end = piece.start + piece.count
        tokens = entry.request.prompt_ids[max(0, piece.start - ahead) : max(0, end - ahead)]
        embeddings = None
        if virtual is not None and piece.start < ahead:
            embeddings = virtual[piece.start : min(end, ahead)]
        self._read += len(tokens)
        return PromptPiece(piece.id, tokens, entry.snapshot, embeddings, wanted)

    def _keep_prefix(self, entry: Entry) -> None:
        request, snapshot = entry.request, entry.snapshot
        self._prefixes.store(
            entry.beginning,
            ahead=0 if snapshot is None else snapshot.terms.virtual_tokens,
            read=lambda tokens: self._cache.read(request.id, tokens),
        )

    def _take(self, entry: Entry, token: int, logprobs: TokenLogprobs | None) -> Output:
        params = entry.request.params
        entry.tokens.append(token)
        reason: FinishReason | None = None
        text = ""
        if self._ends(entry):
            reason = "stop"
        elif entry.text is not None:
            text, stopped = entry.text.push(token)
            reason = "stop" if stopped else None
        if reason is None and len(entry.tokens) == params.max_new_tokens:
            reason = "length"
        if reason is not None:
            if entry.text is not None:
                rest, stopped = entry.text.finish()
                text, reason = text + rest, "stop" if stopped else reason
            self._finished += 1
            self._leave(entry)
        return Output(entry.request.id, token, text, reason, logprobs, entry.usage)

    def _fail(self, entry: Entry) -> Output:
        """End a request whose logits aren't finite; its adapter has driven the base out of all bounds."""
        rest = entry.text.finish()[0] if entry.text is not None else ""
        self._finished += 1
        self._leave(entry)
        return Output(entry.request.id, None, rest, "failed", None, entry.usage)

    def _ends(self, entry: Entry) -> bool:
        """Whether the last token ends the answer."""
        last = entry.tokens[-1] if entry.tokens else None
        return last in self._end_ids and not entry.request.params.ignore_eos

    def _leave(self, entry: Entry) -> None:
        name = entry.request.id
        del self._entries[name]
        self._scheduler.remove(name)
        if entry.running:
            self._cache.remove(name)
            if entry.snapshot is not None:
                self._slots.release(entry.snapshot)
