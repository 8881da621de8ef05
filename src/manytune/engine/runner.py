"""One forward of a transformers decoder over tokens of many sequences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from manytune.engine import attention
from manytune.engine.attention import AttentionStep, ChunkSpan
from manytune.engine.kv_cache import KVCache
from manytune.mixed.layers import Forward, MixedLayers
from manytune.mixed.owners import Owners
from manytune.mixed.slots import AdapterSlots
from manytune.mixed.stacks import Snapshot, digest_of

_StepT = TypeVar("_StepT", bound=AttentionStep)


@dataclass(frozen=True)
class NextToken:
    """A decoding sequence.

    Attributes:
        sequence: The sequence.
        token: Its last token, which the forward reads.
        adapter: The adapter that reads it.
        draft: Guesses of the tokens after it, which are read, too.
    """

    sequence: str
    token: int
    adapter: Snapshot | None
    draft: tuple[int, ...] = ()


@dataclass(frozen=True)
class PromptChunk:
    """A chunk of a sequence's prompt.

    Attributes:
        sequence: The sequence.
        tokens: Token ids.
        adapter: The adapter that reads them.
        embeddings: Virtual tokens before them, (tokens, hidden), or None.
        wants_logits: Whether the prompt ends with this chunk, so that the next token has to be chosen.
        is_scored: Whether the logits of all its tokens are wanted.
    """

    sequence: str
    tokens: tuple[int, ...]
    adapter: Snapshot | None
    embeddings: Tensor | None
    wants_logits: bool
    is_scored: bool = False

    @property
    def embedded_tokens(self) -> int:
        """Number of virtual tokens."""
        return 0 if self.embeddings is None else self.embeddings.shape[0]


@dataclass
class TokenRow:
    """All tokens of a forward, one after the other.

    Attributes:
        ids: Token ids; 0 for virtual tokens.
        rows: Their rows in the cache.
        positions: Their positions in their sequences.
        keep: Indices of the tokens whose logits are needed: those that `next` chooses from, drafts, and scored prompts.
        next: Which of them choose a next token.
        more: Which of them are of which sequence's draft or scored prompt.
        chunks: Where drafts are, then prompt chunks.
        drafts: How many of them are drafts.
        virtual: Index of the first token and embeddings of each chunk with virtual tokens.
    """

    ids: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    keep: list[int] = field(default_factory=list)
    next: list[int] = field(default_factory=list)
    more: dict[str, slice] = field(default_factory=dict)
    chunks: list[ChunkSpan] = field(default_factory=list)
    virtual: list[tuple[int, Tensor]] = field(default_factory=list)
    drafts: int = 0

    def keep_all(self, sequence: str, indices: range) -> None:
        """Have the logits of a sequence's tokens."""
        self.more[sequence] = slice(len(self.keep), len(self.keep) + len(indices))
        self.keep.extend(indices)


class Runner:
    """Runs a base with adapters; the model is unchanged between forwards.

    Args:
        model: The base, in evaluation mode.
        cache: Keys and values.
        slots: The adapters.
        weights: Forwards of the linear layers to use in place of their own, by path.
    """

    def __init__(
        self, model: PreTrainedModel, cache: KVCache, slots: AdapterSlots, weights: Mapping[str, Forward]
    ) -> None:
        self._model = model
        self._cache = cache
        self._slots = slots
        self._layers = MixedLayers(dict(model.named_modules()), weights)
        self._device = model.device

    @property
    def cache(self) -> KVCache:
        """Keys and values."""
        return self._cache

    def has_exact_rows(self) -> bool:
        """Whether the base's tokens are known to have the same logits to the last bit whatever is read with them."""
        return False

    @property
    def has_exact_adapters(self) -> bool:
        """Whether what adapters add is the same to the last bit whatever is read with a token."""
        return False

    @torch.inference_mode()
    def forward(
        self, decode: Sequence[NextToken], chunks: Sequence[PromptChunk]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Read tokens, and write their keys and values to the cache.

        Args:
            decode: All decoding sequences, in the order of the cache's rows.
            chunks: Prompt chunks.

        Returns:
            Logits, (sequences whose next token is to be chosen, vocabulary): the decoding ones, then the chunks that
            want them. And by sequence those of drafts, and of the tokens of scored chunks without virtual ones,
            (tokens, vocabulary).
        """
        tokens = self._token_row(decode, chunks)
        # The head can't run on no tokens: if none is needed it reads the first, whose logits are dropped.
        kept = None if len(tokens.keep) == len(tokens.ids) else tuple(tokens.keep or [0])
        drafted = [one for one in decode if one.draft]
        spans = tokens.chunks[tokens.drafts :]
        owners = Owners(
            tuple(digest_of(one.adapter) for one in (*decode, *(one for one in drafted for _ in one.draft))),
            tuple(
                (digest_of(chunk.adapter), slice(span.first, span.first + span.count))
                for chunk, span in zip(chunks, spans, strict=True)
            ),
            kept,
        )
        # One transfer for what every layer needs.
        index = torch.tensor([tokens.ids, tokens.rows, tokens.positions], device=self._device)  # (3, T)
        logits = self._logits(index, tokens, len(decode), owners)[: len(tokens.keep)]
        for one in decode:
            self._cache.extend(one.sequence, 1 + len(one.draft))
        for chunk, span in zip(chunks, spans, strict=True):
            self._cache.extend(chunk.sequence, span.count)
        more = {sequence: logits[rows] for sequence, rows in tokens.more.items()}
        return (logits[tokens.next] if more else logits), more

    def _token_row(self, decode: Sequence[NextToken], chunks: Sequence[PromptChunk]) -> TokenRow:
        row = TokenRow(
            ids=[one.token for one in decode],
            rows=[self._cache.row(one.sequence) for one in decode],
            positions=[self._cache.length(one.sequence) for one in decode],
            keep=list(range(len(decode))),
            next=list(range(len(decode))),
        )
        for one in decode:
            if one.draft:
                # Attention sees the token before them in the cache, where its keys and values are written first.
                span = self._append(row, one.sequence, self._cache.length(one.sequence) + 1, one.draft)
                row.keep_all(one.sequence, range(span.first, span.first + span.count))
        row.drafts = len(row.chunks)
        for chunk in chunks:
            start = self._cache.length(chunk.sequence)
            span = self._append(row, chunk.sequence, start, (*[0] * chunk.embedded_tokens, *chunk.tokens))
            if chunk.embeddings is not None:
                row.virtual.append((span.first, chunk.embeddings))
            end = span.first + span.count
            if chunk.is_scored:
                row.keep_all(chunk.sequence, range(span.first + chunk.embedded_tokens, end))
            elif chunk.wants_logits:
                row.keep.append(end - 1)
            if chunk.wants_logits:
                row.next.append(len(row.keep) - 1)
        return row

    def _append(self, row: TokenRow, sequence: str, start: int, ids: Sequence[int]) -> ChunkSpan:
        """Append neighbours of one sequence, from a position on."""
        span = ChunkSpan(self._cache.row(sequence), len(row.ids), start, len(ids))
        row.chunks.append(span)
        row.ids.extend(ids)
        row.rows.extend([span.row] * len(ids))
        row.positions.extend(range(start, start + len(ids)))
        return span

    def _logits(self, index: Tensor, tokens: TokenRow, decoding: int, owners: Owners) -> Tensor:
        """Logits of the tokens that the head reads."""
        step = self._step(AttentionStep, index, tokens, decoding, owners)
        return self._model_logits(attention.NAME, step, index, tokens, owners)

    def _model_logits(
        self, attention_function: str, step: object, index: Tensor, tokens: TokenRow, owners: Owners
    ) -> Tensor:
        with self._running(attention_function, owners):
            inputs: dict[str, Tensor] = {"input_ids": index[:1]}
            if tokens.virtual:
                embeddings = with_virtual_tokens(
                    self._model.get_input_embeddings()(index[:1]), tokens.virtual
                )
                inputs = {"inputs_embeds": embeddings}
            logits: Tensor = self._model(
                **inputs,
                position_ids=index[2:],
                logits_to_keep=0 if owners.kept is None else torch.tensor(owners.kept, device=self._device),
                use_cache=False,
                manytune_step=step,
            ).logits[0]
        return logits

    def _step(
        self,
        kind: type[_StepT],
        index: Tensor,
        tokens: TokenRow,
        decoding: int,
        owners: Owners,
        **more: Any,
    ) -> _StepT:
        """Which parts of the cache the forward's tokens write and read; `more` is what this kind knows besides."""
        return kind(
            self._cache,
            rows=index[1],
            positions=index[2],
            decoding=decoding,
            longest=max(tokens.positions[:decoding], default=0) + 1,
            chunks=tuple(tokens.chunks),
            guarded=bool(owners.digests),
            **more,
        )

    @contextmanager
    def _running(self, attention_function: str, owners: Owners) -> Iterator[None]:
        """Within this context the model's attention is the engine's, and its layers have the adapters' terms."""
        before = self._model.config._attn_implementation
        self._set_attention(attention_function)
        try:
            with self._layers.applied(self._slots.choose(owners)):
                yield
        finally:
            self._set_attention(before)
            self._slots.end_forward()

    def _set_attention(self, name: str) -> None:
        self._model.set_attn_implementation(name)


def with_virtual_tokens(embeddings: Tensor, virtual: Iterable[tuple[int, Tensor]]) -> Tensor:
    """Embeddings of a row's tokens, (1, T, hidden), with virtual ones in their places, from these indices on."""
    for first, values in virtual:
        embeddings[0, first : first + values.shape[0]] = values.to(embeddings.dtype)
    return embeddings
