"""Embeddings from an encoder with any of many adapters: the engine of a base that generates no text.

    engine = EncoderEngine(model, Pooling())
    engine.add_adapter("support", adapter)             # as the store's cache returns it
    vectors = engine.embed([ids], "support")

It has the methods of `Engine` that a server's loop calls. What is to be embedded for requests goes through a
`TextRunner` over it, which has the queue; its own steps do nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from manytune.engine.counters import Counters
from manytune.engine.request import Output, Request
from manytune.engine.text_runner import TextInput, TextJob, TextRunner, TextTokens, step_tokens_on
from manytune.errors import ConfigError, ContextLengthError, RequestError
from manytune.methods.tuners.terms import Adapter, Terms
from manytune.mixed.layers import MixedLayers
from manytune.mixed.memory_estimate import AdapterLimit, bytes_for_one
from manytune.mixed.owners import Owners
from manytune.mixed.slots import AdapterSlots
from manytune.mixed.stacks import LayerTerms, Snapshot, digest_of
from manytune.model.image_models import reads_images


@dataclass(frozen=True)
class Pooling:
    """How the vectors of a text's tokens are combined.

    Attributes:
        mode: Their mean, the first token's vector, or the maximum of each component.
        normalize: Whether the result is divided by its L2 norm.
        max_tokens: Length of the longest text; None for as many tokens as the model has positions.
    """

    mode: Literal["mean", "cls", "max"] = "mean"
    normalize: bool = True
    max_tokens: int | None = None


class EncoderEngine:
    """Runs an encoder with adapters in its linear layers. It must be used from one thread.

    Args:
        model: The encoder, without a head.
        pooling: How the vectors of a text's tokens are combined.
        pad_id: The pad token.
    """

    def __init__(self, model: PreTrainedModel, pooling: Pooling, *, pad_id: int = 0) -> None:
        model.eval()
        self._model = model
        self._pooling = pooling
        self._pad_id = pad_id
        self._slots = AdapterSlots(model, AdapterLimit(nbytes=bytes_for_one(model.device)))
        self._layers = MixedLayers(dict(model.named_modules()), {})
        self._steps = self._read = self._finished = 0
        positions = getattr(model.config, "max_position_embeddings", None)
        limits = [limit for limit in (pooling.max_tokens, positions) if limit is not None]
        #: Length of the longest text, in tokens.
        self.max_tokens: int | None = min(limits, default=None)

    def embed(self, texts: Sequence[Sequence[int]], adapter: str | None = None) -> list[list[float]]:
        """The vector of each text.

        Args:
            texts: Token ids, with the special tokens that the encoder expects.
            adapter: Name of the adapter to use; None for the plain base.

        Raises:
            RequestError: A text is empty, or has a token that the model doesn't know.
            ContextLengthError: A text is too long.
            AdapterError: The adapter isn't registered.
        """
        if not texts:
            return []
        job = TextJob(texts=[TextTokens(tuple(ids)) for ids in texts], adapter=adapter)
        runner = TextRunner(lambda: self)
        runner.add(job)
        while runner.busy:
            runner.step()
        return job.result.result()

    # -- what a runner of texts uses

    @property
    def step_tokens(self) -> int:
        """See `TextModel.step_tokens`."""
        return step_tokens_on(self._model.device)

    def prepare(self, job: TextJob) -> Snapshot | None:
        """See `TextModel.prepare`.

        Raises:
            RequestError: A text is empty, or has a token that the model doesn't know.
            ContextLengthError: A text is too long.
            AdapterError: The adapter isn't registered.
            ConfigError: It can't run in a mixed batch, doesn't fit the base, or has virtual tokens.
        """
        for number, text in enumerate(_texts(job.texts)):
            self._check(number, text.ids)
        if job.adapter is None:
            return None
        if not isinstance(job.adapter, str) and job.adapter.digest not in self.adapters:
            self.add_adapter(job.adapter.digest, job.adapter, terms=job.terms)
        snapshot = self._slots.snapshot(job.adapter if isinstance(job.adapter, str) else job.adapter.digest)
        self._slots.acquire(snapshot)
        return snapshot

    def release(self, prepared: Snapshot | None) -> None:
        """See `TextModel.release`."""
        self._finished += 1
        if prepared is not None:
            self._slots.release(prepared)

    def goes_alone(self, prepared: Snapshot | None) -> bool:
        """See `TextModel.goes_alone`: never."""
        return False

    @torch.inference_mode()
    def run(self, rows: Sequence[tuple[Snapshot | None, TextInput]]) -> list[list[float]]:
        """See `TextModel.run`: the vectors."""
        owners = Owners(tuple(digest_of(snapshot) for snapshot, _ in rows))
        texts = _texts([text for _, text in rows])
        try:
            vectors = self._forward([text.ids for text in texts], self._slots.choose(owners))
        finally:
            self._slots.end_forward()
        self._read += sum(text.size for text in texts)
        found: list[list[float]] = vectors.tolist()
        return found

    # -- what a loop uses of an engine

    def add_adapter(self, name: str, adapter: Adapter, *, terms: Terms | None = None) -> None:
        """See `Engine.add_adapter`.

        Raises:
            ConfigError: It can't run in a mixed batch, doesn't fit the base, or has virtual tokens.
        """
        self._slots.register(name, adapter, terms)
        if self._slots.snapshot(name).terms.virtual_tokens:
            self._slots.unregister(name)
            raise ConfigError(
                f"{adapter.config.peft_type} adapters put virtual tokens before a text, which embeddings don't "
                "support. Use an adapter in the encoder's layers, such as LoRA."
            )

    def remove_adapter(self, name: str) -> bool:
        """See `Engine.remove_adapter`; no request ever uses it afterwards."""
        self._slots.unregister(name)
        return False

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the registered adapters."""
        return self._slots.names

    @property
    def busy(self) -> bool:
        """False: what waits to be embedded waits in a `TextRunner`."""
        return False

    def submit(self, request: Request) -> None:
        """Refuse a request to generate text.

        Raises:
            RequestError: Always.
        """
        raise RequestError("this base is an encoder: it computes embeddings and generates no text.")

    def cancel(self, request_id: str) -> Output | None:
        """None: there are no requests."""
        return None

    def step(self) -> list[Output]:
        """No outputs: there are no requests."""
        return []

    def counters(self) -> Counters:
        """What the engine has done so far."""
        return Counters(
            steps=self._steps,
            prompt_tokens=self._read,
            cached_tokens=0,
            completion_tokens=0,
            finished=self._finished,
            cancelled=0,
            waiting=0,
            running=0,
            kv_tokens=0,
            kv_budget_tokens=0,
            adapters=len(self._slots.names),
            adapters_in_slots=self._slots.held,
            prefix_tokens=0,
        )

    # -- parts

    def _check(self, number: int, ids: Sequence[int]) -> None:
        if reads_images(self._model.config):
            raise RequestError("this base reads images: send them to /v1/classify, with an adapter's name.")
        vocabulary = self._model.config.vocab_size
        if not ids:
            raise RequestError(f"text {number} has no tokens.")
        if self.max_tokens is not None and len(ids) > self.max_tokens:
            raise ContextLengthError(
                f"text {number} has {len(ids)} tokens; the model has {self.max_tokens} positions."
            )
        unknown = next((token for token in ids if not 0 <= token < vocabulary), None)
        if unknown is not None:
            raise RequestError(
                f"text {number} contains token {unknown}, and the model has {vocabulary} tokens."
            )

    def _forward(self, texts: Sequence[Sequence[int]], terms: Mapping[str, LayerTerms]) -> Tensor:
        width = max(map(len, texts))
        ids = torch.tensor([[*text, *[self._pad_id] * (width - len(text))] for text in texts])
        mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts])
        device = self._model.device
        with self._layers.applied(terms):
            states = self._model(input_ids=ids.to(device), attention_mask=mask.to(device))[0].float()
        self._steps += 1
        return self._pooled(states, mask.to(device)[..., None].bool())

    def _pooled(self, states: Tensor, real: Tensor) -> Tensor:
        """(texts, tokens, hidden) to (texts, hidden)."""
        if self._pooling.mode == "cls":
            vectors = states[:, 0]
        elif self._pooling.mode == "max":
            vectors = states.masked_fill(~real, float("-inf")).amax(1)
        else:
            vectors = states.masked_fill(~real, 0).sum(1) / real.sum(1)
        return torch.nn.functional.normalize(vectors, dim=1) if self._pooling.normalize else vectors


def _texts(given: Sequence[TextInput]) -> list[TextTokens]:
    """Those that are texts; nothing else is given to this engine."""
    return [one for one in given if isinstance(one, TextTokens)]
