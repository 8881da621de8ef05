"""An encoder's pass over inputs of many requests, and a decoder's forward that attends to what it made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from manytune.cache_argument import cache_argument
from manytune.engine.encoder_decoder import attention
from manytune.engine.encoder_decoder.attention import DecoderStep, DistanceBias, EncoderStep, NoCache
from manytune.engine.encoder_decoder.structure import Structure
from manytune.engine.kv_cache import KVCache
from manytune.engine.model_input import Source
from manytune.engine.runner import Runner, TokenRow, with_virtual_tokens
from manytune.mixed.layers import Forward
from manytune.mixed.owners import Owners
from manytune.mixed.slots import AdapterSlots
from manytune.mixed.stacks import Snapshot, digest_of

# Tokens of a pass, unless one input has more: T5 computes a bias of every pair of them.
_PASS = 512


@dataclass(frozen=True)
class Encoded:
    """What a decoder needs of an encoder's input.

    Attributes:
        values: Keys and values of cross-attention, (layers, 2, heads, tokens, head_dim).
        is_finite: Whether the encoder's states have neither NaN nor Inf.
    """

    values: Tensor
    is_finite: bool


class EncoderDecoderRunner(Runner):
    """Runs an encoder-decoder with adapters; the model is unchanged between forwards.

    Args:
        model: The base, in evaluation mode.
        structure: Its parts.
        cache: Keys and values of the decoder's own tokens.
        sources: Those of what the encoder has read, in rows as in `cache`.
        slots: The adapters.
        weights: Forwards of the linear layers to use in place of their own, by path.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        structure: Structure,
        cache: KVCache,
        sources: KVCache,
        slots: AdapterSlots,
        weights: Mapping[str, Forward],
    ) -> None:
        tables = {path: self._with_positions(model.get_submodule(path)) for path in structure.tables}
        super().__init__(model, cache, slots, {**weights, **tables})
        self._structure = structure
        self._sources = sources
        self._cross = [tuple(model.get_submodule(path) for path in pair) for pair in structure.cross]
        self._bias = DistanceBias()
        # Encoder and decoder have configurations of their own; transformers' way to set them looks through all modules.
        inner = [part.config for part in model.modules() if isinstance(part, PreTrainedModel)]
        self._configs = list({id(config): config for config in inner}.values())
        named = cache_argument(self._model) or "past_key_values"
        self._cached = {named: NoCache(len(structure.cross))}
        self._positions = torch.empty(0)  # of the tokens of a forward, while it runs

    @torch.inference_mode()
    def encode(self, sources: Sequence[tuple[Source, Snapshot | None]]) -> list[Encoded]:
        """Read inputs of the encoder.

        Args:
            sources: The inputs, each with the adapter that reads it.
        """
        # Inputs of one adapter are neighbours, so that it has one product with them.
        order = sorted(range(len(sources)), key=lambda place: digest_of(sources[place][1]) or "")
        found: dict[int, Encoded] = {}
        batch: list[int] = []
        for place in order:
            tokens = sum(sources[one][0].length for one in batch)
            if batch and tokens + sources[place][0].length > _PASS:
                found |= zip(batch, self._encode([sources[one] for one in batch]), strict=True)
                batch = []
            batch.append(place)
        found |= zip(batch, self._encode([sources[one] for one in batch]), strict=True)
        return [found[place] for place in range(len(sources))]

    def _encode(self, sources: Sequence[tuple[Source, Snapshot | None]]) -> list[Encoded]:
        ids: list[int] = []
        positions: list[int] = []
        inputs: list[slice] = []
        chunks: list[tuple[str | None, slice]] = []
        virtual: list[tuple[int, Tensor]] = []
        for source, adapter in sources:
            span = slice(len(ids), len(ids) + source.length)
            ids.extend((*[0] * source.virtual_tokens, *source.tokens))
            positions.extend(range(source.length))
            inputs.append(span)
            if source.embeddings is not None:
                virtual.append((span.start, source.embeddings))
            digest = digest_of(adapter)
            if chunks and chunks[-1][0] == digest:
                chunks[-1] = digest, slice(chunks[-1][1].start, span.stop)
            else:
                chunks.append((digest, span))
        row, self._positions = torch.tensor([ids, positions], device=self._device)
        encoder = self._structure.encoder
        with self._running(attention.NAME, Owners((), tuple(chunks))):
            given: dict[str, Tensor] = {"input_ids": row[None]}
            if virtual:
                embeddings = encoder.get_input_embeddings()(row[None])
                given = {"inputs_embeds": with_virtual_tokens(embeddings, virtual)}
            states: Tensor = encoder(**given, manytune_step=EncoderStep(tuple(inputs))).last_hidden_state
            # (layers, 2, T, heads, head_dim)
            values = torch.stack(
                [torch.stack([self._by_head(part(states)) for part in pair]) for pair in self._cross]
            )
        finite = states[0].isfinite().all(1)
        values = values.transpose(2, 3)
        return [Encoded(values[:, :, :, span], bool(finite[span].all())) for span in inputs]

    def _by_head(self, values: Tensor) -> Tensor:
        by_head: Tensor = values[0].unflatten(-1, (self._structure.heads, self._structure.head_dim))
        return by_head

    def _logits(self, index: Tensor, tokens: TokenRow, decoding: int, owners: Owners) -> Tensor:
        """See `Runner._logits`; the head reads all tokens, of which each chooses a next one."""
        assert owners.kept is None and not tokens.virtual
        order = self._sources.order
        rows = [*range(decoding), *(chunk.row for chunk in tokens.chunks)]
        step = self._step(
            DecoderStep,
            index,
            tokens,
            decoding,
            owners,
            sources=self._sources,
            lengths=[self._sources.length(order[row]) for row in rows],
            bias=self._bias,
        )
        self._positions = index[2]
        with self._running(attention.NAME, owners):
            logits: Tensor = self._model(
                decoder_input_ids=index[:1],
                # Its keys and values are known already, so that nothing reads the states themselves.
                encoder_outputs=(torch.empty((1, 1, 0), device=self._device),),
                use_cache=False,
                manytune_step=step,
                **self._cached,
            ).logits[0]
        return logits

    def _set_attention(self, name: str) -> None:
        for config in self._configs:
            config._attn_implementation = name

    def _with_positions(self, table: nn.Module) -> Forward:
        """A module that embeds positions, with those of the forward's tokens in their own sequences."""
        forward = type(table).forward.__get__(table)

        def embed(tokens: Any, *args: Any, **kwargs: Any) -> Any:
            return forward(tokens, position_ids=self._positions)

        return embed
