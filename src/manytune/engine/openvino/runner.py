"""Forwards of a decoder in OpenVINO, and in torch for the rows whose adapters it can't compute."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from manytune.engine.openvino import paged_attention
from manytune.engine.openvino.adapter_tables import AdapterTables, Division, obstacle, outline_of
from manytune.engine.openvino.agreement import require_agreement
from manytune.engine.openvino.graph import PAGE
from manytune.engine.openvino.native import operation
from manytune.engine.openvino.outline import Outline
from manytune.engine.openvino.own_weights import OwnWeights
from manytune.engine.openvino.paged_attention import PagedSpan, PagedStep
from manytune.engine.openvino.paged_cache import PagedCache
from manytune.engine.openvino.program import Program, Programs
from manytune.engine.openvino.row_exactness import are_rows_exact
from manytune.engine.openvino.windowed_weights import WindowedWeights
from manytune.engine.runner import NextToken, PromptChunk, Runner, TokenRow, with_virtual_tokens
from manytune.engine.weights import Rounding
from manytune.mixed.owners import Owners
from manytune.mixed.slots import AdapterSlots
from manytune.mixed.stacks import Snapshot

_log = logging.getLogger(__name__)


class PagedRunner(Runner):
    """Forwards in torch over a paged cache, of any of the sequences."""

    _cache: PagedCache

    def _logits(self, index: Tensor, tokens: TokenRow, decoding: int, owners: Owners) -> Tensor:
        spans = [
            PagedSpan(torch.tensor(self._cache.pages(name)), where, tokens.positions[where.start])
            for name, where in self._sequences(tokens, decoding)
        ]
        step = PagedStep(self._cache, spans)
        return self._model_logits(paged_attention.NAME, step, index, tokens, owners)

    def _sequences(self, tokens: TokenRow, decoding: int) -> list[tuple[str, slice]]:
        """The sequences of a forward, each with the place of its tokens."""
        order = self._cache.order
        alone = [(order[row], slice(place, place + 1)) for place, row in enumerate(tokens.rows[:decoding])]
        return alone + [(order[one.row], slice(one.first, one.first + one.count)) for one in tokens.chunks]


@dataclass(frozen=True)
class _Known:
    """What a graph has to do with an adapter.

    Attributes:
        obstacle: Why it can't compute the adapter; None if it can.
        outline: What the adapter does in it.
        on_table: Whether the adapter acts on the token embeddings, which torch looks up.
    """

    obstacle: str | None
    outline: Outline
    on_table: bool


class OpenVINORunner(PagedRunner):
    """Forwards in OpenVINO.

    A token of the base's answers gets the same logits to the last bit whatever is read with it, guessed tokens
    before it included (`row_exactness` compares). Products compute each row by itself, but attention has three kernels,
    which sum in different orders: one for several tokens of a sequence, one for single tokens, and one that divides the
    keys of few single tokens among threads. Drafted tokens are given to it as sequences of one token each, and empty
    sequences are added to few ones, so that it always uses the second for answers. The operation that adds
    adapters' updates computes each row by itself, too; the products in its place don't.

    Args:
        model: The base, in evaluation mode.
        cache: Keys and values.
        slots: The adapters.
        rounding: What weights are rounded to in OpenVINO; None for the model's own numbers.

    Raises:
        ConfigError: OpenVINO can't run the model.
    """

    def __init__(
        self, model: PreTrainedModel, cache: PagedCache, slots: AdapterSlots, rounding: Rounding | None
    ) -> None:
        super().__init__(model, cache, slots, {})
        self._in_torch = PagedRunner(model, cache, slots, {})
        self._table = model.get_input_embeddings()
        self._embedding = next(path for path, module in model.named_modules() if module is self._table)
        adds = operation()
        self._tables: AdapterTables = (
            WindowedWeights(self._embedding)
            if adds is None
            else OwnWeights(self._embedding, torch.float32 if rounding is None else torch.bfloat16)
        )
        self._programs = Programs(model, cache, rounding, adds)
        self._program = self._programs.program(Outline())
        self._known: dict[str, _Known] = {}
        self._wanted = (frozenset[str](), Outline())  # the last step's adapters, and what they do together
        self._divided: tuple[object, Division] | None = None
        require_agreement(model, cache, self._in_torch, self, rounding)

    @property
    def copied(self) -> Collection[str]:
        """Paths of the layers whose weights it has a copy of."""
        return self._programs.layers

    def has_exact_rows(self) -> bool:
        """See `Runner.has_exact_rows`; it takes a few forwards to find out."""
        return are_rows_exact(self._cache, self, self._model.config.get_text_config().vocab_size)

    @property
    def has_exact_adapters(self) -> bool:
        """See `Runner.has_exact_adapters`."""
        return isinstance(self._tables, OwnWeights)

    @torch.inference_mode()
    def forward(
        self, decode: Sequence[NextToken], chunks: Sequence[PromptChunk]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Runner.forward`; torch runs the rows of adapters that the graph can't compute, OpenVINO the others."""
        rows: list[NextToken | PromptChunk] = [*decode, *chunks]
        apart = [self._facts(one.adapter).obstacle is not None for one in rows]
        if all(apart):
            return self._in_torch.forward(decode, chunks)
        here = [one for one, is_apart in zip(rows, apart, strict=True) if not is_apart]
        adapters = {one.adapter.digest: one.adapter for one in here if one.adapter}
        try:
            self._program = self._program_for(adapters)
        except RuntimeError as error:  # OpenVINO's, in compiling what these adapters do
            for digest in adapters:
                self._known[digest] = replace(self._known[digest], obstacle="OpenVINO can't compile it")
            _log.warning("the rows of %d adapters run in torch, not in OpenVINO: %s", len(adapters), error)
            return self.forward(decode, chunks)
        if not any(apart):
            return super().forward(decode, chunks)
        logits: list[Tensor] = []
        choosing: list[int] = []
        scored: dict[str, Tensor] = {}
        for run, wanted in ((super().forward, False), (self._in_torch.forward, True)):
            mine = [place for place, is_apart in enumerate(apart) if is_apart == wanted]
            found, of_prompts = run(
                [decode[place] for place in mine if place < len(decode)],
                [chunks[place - len(decode)] for place in mine if place >= len(decode)],
            )
            logits.append(found)
            choosing += [
                place for place in mine if place < len(decode) or chunks[place - len(decode)].wants_logits
            ]
            scored |= of_prompts
        order = sorted(range(len(choosing)), key=lambda row: choosing[row])
        return torch.cat(logits)[order], scored

    def _sequences(self, tokens: TokenRow, decoding: int) -> list[tuple[str, slice]]:
        """See `PagedRunner._sequences`; each drafted token is a sequence of its own over the same pages."""
        whole = super()._sequences(tokens, decoding)
        drafts, chunks = whole[decoding : decoding + tokens.drafts], whole[decoding + tokens.drafts :]
        apart = [
            (name, slice(place, place + 1))
            for name, where in drafts
            for place in range(where.start, where.stop)
        ]
        return whole[:decoding] + apart + chunks

    def _logits(self, index: Tensor, tokens: TokenRow, decoding: int, owners: Owners) -> Tensor:
        sequences = self._sequences(tokens, decoding)
        embeddings, positions = self._embeddings(index[:1], tokens, owners)[0], index[2]
        kept = torch.tensor(tokens.keep or [0])
        if self._program.outline == Outline():
            given = self._places(sequences, tokens)
            given |= {"embeddings": embeddings[None], "positions": positions[None], "kept": kept}
            return self._program.run(given)
        division = self._division(owners, in_one=len(tokens.chunks) > tokens.drafts)
        count, order = division.count, division.order
        if count > 1:
            sequences = [sequences[token] for token in order.tolist()]
            embeddings, positions = embeddings[order], positions[order]
            kept = torch.arange(len(order) // count)  # of each part
        given = self._places(sequences, tokens) | division.inputs
        given["embeddings"] = embeddings.unflatten(0, (count, -1))
        given["positions"] = positions.unflatten(0, (count, -1))
        given["kept"] = kept
        if self._program.tables != division.tables:
            self._program.give(self._tables.tensors(division.tables))
            self._program.tables = division.tables
        logits = self._program.run(given)
        # By numpy, in one thread; see `sampling`.
        return logits if count == 1 else torch.from_numpy(logits.numpy()[order.argsort().numpy()])

    # -- adapters

    def _facts(self, adapter: Snapshot | None) -> _Known:
        if adapter is None:
            return _BASE
        if adapter.digest not in self._known:
            terms = adapter.terms
            programs = self._programs
            why = obstacle(terms, programs.layers, self._embedding, programs.shared, self._tables.largest)
            if why is not None:
                _log.warning("the rows of an adapter run in torch, not in OpenVINO: %s", why)
            self._known[adapter.digest] = _Known(
                why,
                outline_of(terms, self._embedding) if why is None else Outline(),
                self._embedding in terms.updates or self._embedding in terms.factors,
            )
        return self._known[adapter.digest]

    def _program_for(self, adapters: Mapping[str, Snapshot]) -> Program:
        """The program that computes these adapters, whose weights are in the tables then."""
        new = [one for digest, one in adapters.items() if digest not in self._tables]
        if new:
            # Those that no longer run make room.
            self._tables.keep(self._slots.digests)
            self._known = {
                digest: one for digest, one in self._known.items() if digest in self._slots.digests
            }
            for one in new:
                self._tables.add(one)
        if self._wanted[0] != adapters.keys():
            wanted = Outline()
            for one in adapters.values():
                wanted = wanted | self._facts(one).outline
            self._wanted = frozenset(adapters), wanted
        return self._programs.program(self._wanted[1])

    def _division(self, owners: Owners, *, in_one: bool) -> Division:
        """How the program takes a forward's tokens; in one part if any sequence has several."""
        program = self._program
        key = (owners.single, owners.chunks, owners.kept, in_one, self._tables.version, id(program))
        if self._divided is None or self._divided[0] != key:
            digests = list(owners.single)
            for digest, where in owners.chunks:
                digests += [digest] * (where.stop - where.start)
            self._divided = (
                key,
                self._tables.divide(digests, owners.kept, program.outline, in_one=in_one),
            )
        return self._divided[1]

    # -- inputs

    def _embeddings(self, ids: Tensor, tokens: TokenRow, owners: Owners) -> Tensor:
        if any(self._known[digest].on_table for digest in owners.digests):
            with self._layers.applied(self._slots.choose(owners)):
                found = self._table(ids)
            self._slots.end_forward()
        else:
            found = self._table(ids)
        found = found.float()
        return with_virtual_tokens(found, tokens.virtual) if tokens.virtual else found

    def _places(self, sequences: Sequence[tuple[str, slice]], tokens: TokenRow) -> dict[str, Tensor]:
        """Where each sequence's tokens are in the cache, sequence by sequence."""
        past: list[int] = []
        begins, pages, page_begins, longest = [0], [], [0], 1
        for name, where in sequences:
            start, count = tokens.positions[where.start], where.stop - where.start
            past.append(start)
            begins.append(begins[-1] + count)
            pages += self._cache.pages(name)[: -(-(start + count) // PAGE)]
            page_begins.append(len(pages))
            longest = max(longest, start + count)
        for _ in range(torch.get_num_threads() - len(sequences)):  # see the class
            past.append(0)
            begins.append(begins[-1])
            page_begins.append(len(pages))
        given = {
            "past": past,
            "begins": begins,
            "pages": pages,
            "page_begins": page_begins,
            "longest": longest,
        }
        return {name: torch.tensor(values, dtype=torch.int32) for name, values in given.items()}


_BASE = _Known(None, Outline(), on_table=False)
