"""Attention of encoder-decoders in the engine, registered with transformers under `manytune-encoder-decoder`.

An encoder's pass holds inputs one after the other in one row, each of which attends to itself. The decoder's forward is
that of a decoder without an encoder, with two differences: scores may have a bias that depends on the distance of query
and key (T5), and each layer also attends to the encoder's keys and values of the token's own sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, Cache, EncoderDecoderCache

from manytune.engine.attention import AttentionStep, engine_attention_forward
from manytune.engine.kv_cache import KVCache

NAME = "manytune-encoder-decoder"


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """What a module asks its attention function for.

    Attributes:
        module: The calling module.
        query: (1, heads, T, size).
        key: As `query`.
        value: As `query`.
        scaling: Factor of the scores.
        bias: Added to the scores of tokens that are neighbours, (1, heads, T, T), or None.
    """

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float
    bias: Tensor | None


class _Step(Protocol):
    def attend(self, call: AttentionCall) -> Tensor:
        """The attention, (1, T, heads, size)."""


@dataclass(frozen=True)
class EncoderStep:
    """One pass of an encoder.

    Attributes:
        inputs: Where each input is.
    """

    inputs: tuple[slice, ...]

    def attend(self, call: AttentionCall) -> Tensor:
        """Each input attends to itself; the bias depends on distances alone, so each finds its own on the diagonal."""
        out = torch.empty_like(call.query)
        for span in self.inputs:
            query, key, value = (part[:, :, span] for part in (call.query, call.key, call.value))
            own = None if call.bias is None else call.bias[:, :, span, span]
            out[:, :, span] = F.scaled_dot_product_attention(
                query, key, value, attn_mask=own, scale=call.scaling
            )
        return out.transpose(1, 2)


class DistanceBias:
    """T5's bias of attention scores by the distance of a query from a key before it.

    What a module computes for the longest distance so far is kept.
    """

    def __init__(self) -> None:
        self._tables: dict[nn.Module, Tensor] = {}

    def of(self, module: Any, queries: Tensor, keys: int) -> Tensor:
        """The bias of queries at these positions, (heads, queries, keys); what comes after a query isn't right.

        Args:
            module: T5's attention with `relative_attention_bias`.
            queries: Positions, (queries,).
            keys: Number of keys, from position 0.
        """
        table = self._tables.get(module)
        if table is None or table.shape[1] < keys:
            # Of one query at the end: keys from the farthest to its own position.
            bias = module.compute_bias(1, keys, device=queries.device, past_seen_tokens=keys - 1)
            table = self._tables[module] = bias[0, :, 0].flip(1)  # (heads, distances)
        distances = queries[:, None] - torch.arange(keys, device=queries.device)
        return table[:, distances.clamp(min=0)]


@dataclass(kw_only=True)
class DecoderStep(AttentionStep):
    """Which parts of the caches each token of a decoder's forward reads.

    Attributes:
        sources: Keys and values of what encoders have read, in rows as in `cache`.
        lengths: How many of them there are in each row, decoding sequences first, then those of the chunks.
        bias: T5's bias, or None.
    """

    sources: KVCache
    lengths: Sequence[int]
    bias: DistanceBias
    _of: nn.Module | None = None
    _seen: Tensor | None = field(default=None)

    def attend(self, call: AttentionCall) -> Tensor:
        """Attention over a sequence's own tokens, or over what the encoder made of its input.

        The call's bias isn't used: it is for tokens that are neighbours in one sequence.
        """
        module: Any = call.module
        if call.key is _ENCODED:
            return self._attend_to_source(call.query, int(module.layer_idx), call.scaling)
        if getattr(module, "has_relative_attention_bias", False):
            self._of = module
            self._masks.clear()
        out, _ = engine_attention_forward(
            module, call.query, call.key, call.value, None, scaling=call.scaling, manytune_step=self
        )
        return out

    def decode_mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """See `AttentionStep.decode_mask`; with a bias (decoding, heads, 1, longest)."""
        if self._of is None:
            return super().decode_mask(window, dtype)
        key = (window, -2)
        if key not in self._masks:
            bias = self.bias.of(self._of, self.positions[: self.decoding], self.longest)
            self._masks[key] = super().decode_mask(window, dtype) + bias.transpose(0, 1)[:, :, None]
        return self._masks[key]

    def chunk_mask(self, index: int, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """See `AttentionStep.chunk_mask`; with a bias (heads, 1, count, start + count)."""
        if self._of is None:
            return super().chunk_mask(index, window, dtype)
        chunk = self.chunks[index]
        key = (window, index)
        if key not in self._masks:
            positions = torch.arange(chunk.start, chunk.start + chunk.count, device=self.rows.device)
            hidden = torch.arange(chunk.start + chunk.count, device=self.rows.device) > positions[:, None]
            bias = self.bias.of(self._of, positions, chunk.start + chunk.count).to(dtype)
            self._masks[key] = bias.masked_fill(hidden, float("-inf"))[:, None]
        return self._masks[key]

    def _attend_to_source(self, query: Tensor, layer: int, scaling: float) -> Tensor:
        keys, values = self.sources.layer(layer)
        heads, tokens, size = query.shape[1:]
        out = query.new_empty((tokens, heads, size))
        n = self.decoding
        if n:
            longest = max(self.lengths[:n])
            q = query[0, :, :n].transpose(0, 1)[:, :, None]  # (n, heads, 1, size)
            k, v = keys[:n, :, :longest], values[:n, :, :longest]
            found = F.scaled_dot_product_attention(
                q, k, v, attn_mask=self._source_mask(longest), scale=scaling
            )
            out[:n] = found[:, :, 0]
        for chunk, length in zip(self.chunks, self.lengths[n:], strict=True):
            span = slice(chunk.first, chunk.first + chunk.count)
            k, v = keys[chunk.row, :, :length], values[chunk.row, :, :length]
            found = F.scaled_dot_product_attention(query[0, :, span], k, v, scale=scaling)
            out[span] = found.transpose(0, 1)
        return out.unsqueeze(0)

    def _source_mask(self, longest: int) -> Tensor | None:
        """Which part of its row each decoding sequence attends to, (decoding, 1, 1, longest); None for all of it."""
        lengths = self.lengths[: self.decoding]
        if min(lengths) == longest:
            return None
        if self._seen is None:
            ends = torch.tensor(lengths, device=self.rows.device)
            self._seen = (torch.arange(longest, device=self.rows.device) < ends[:, None])[:, None, None]
        return self._seen


# What the model takes for keys and values of cross-attention; `DecoderStep.attend` knows it by its identity.
_ENCODED = torch.empty((1, 1, 1, 1))


class _OwnTokens(Cache):
    """In place of a cache of the decoder's tokens: those of a forward pass through, and the step keeps them."""

    def update(self, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return key, value

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0


class _Encoded:
    keys = values = _ENCODED


class NoCache(EncoderDecoderCache):
    """Tells a decoder's layers that cross-attention has its keys and values, and that it has read no tokens yet.

    Args:
        layers: Number of the decoder's layers.
    """

    def __init__(self, layers: int) -> None:
        super().__init__(_OwnTokens(layers=[]), _OwnTokens(layers=[]))
        self.cross_attention_cache.layers = [_Encoded()] * layers  # type: ignore[list-item]
        self.is_updated = dict.fromkeys(range(layers), True)


def encoder_decoder_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    dropout: float = 0.0,
    manytune_step: _Step | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of an encoder's inputs, or of a decoder's tokens.

    Semantics, with S the positions that a token t sees (all of its input; the positions of its sequence up to its own;
    or all that the encoder made of its input) and b the model's bias, or 0:

        out[t] = sum_s softmax_{s in S}(scaling * query[t] . K[s] + b[t - s]) V[s]

    Args:
        module: The calling attention module; its `layer_idx` says which layer it is.
        query: (1, heads, T, head_dim).
        key: As `query`.
        value: As `query`.
        attention_mask: None; the masks are those of the step.
        scaling: Factor of the scores; `head_dim ** -0.5` if None.
        position_bias: The model's bias of tokens that are neighbours, (1, heads, T, keys), or None.
        dropout: Must be 0.
        manytune_step: An `EncoderStep` or `DecoderStep`.
        kwargs: Arguments that other attention functions use.

    Returns:
        (1, T, heads, head_dim), and None in place of the attention weights.

    Raises:
        RuntimeError: The step is missing, or there is a mask or dropout.
    """
    if manytune_step is None or attention_mask is not None or dropout:
        raise RuntimeError(
            f"attention function {NAME!r} is for the engine's forwards only; {type(module).__name__} called it with no "
            "manytune_step, a mask, or dropout. Call the model outside of Engine.step()."
        )
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    call = AttentionCall(module, query, key, value, scaling, position_bias)
    return manytune_step.attend(call), None


AttentionInterface.register(NAME, encoder_decoder_attention)
