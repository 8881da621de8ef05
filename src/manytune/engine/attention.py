"""The attention function of the engine, registered with transformers under `manytune-engine`.

A forward holds tokens of many sequences in one row: first one token of each decoding sequence, in the order of their
rows in the cache, then prompt chunks. Each token's key and value are written to the cache, and its query attends to
the cache of its own sequence. Which token belongs to which sequence is passed as the keyword argument `manytune_step`,
which transformers hands to the attention function in every model that declares `_supports_attention_backend`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from manytune.engine.kv_cache import KVCache, bounded

NAME = "manytune-engine"

#: Arguments that change what attention computes and that this function doesn't implement.
UNSUPPORTED = ("s_aux", "position_bias", "head_mask", "alibi", "sinks")


@dataclass(frozen=True)
class ChunkSpan:
    """Where the tokens of a prompt chunk are.

    Attributes:
        row: The sequence's row in the cache.
        first: Index of the chunk's first token in the forward.
        start: Position of that token in its sequence.
        count: Number of tokens.
    """

    row: int
    first: int
    start: int
    count: int


@dataclass
class AttentionStep:
    """Which part of the cache each token of a forward writes and reads.

    Attributes:
        cache: Keys and values.
        rows: The cache's row of each token, `(T,)`.
        positions: Each token's position in its sequence, `(T,)`.
        decoding: Number of decoding tokens, which come first; token i of them belongs to row i.
        longest: Length of the longest decoding sequence, the present token included.
        chunks: The other tokens.
        guarded: Whether keys and values may be NaN or Inf, because an adapter takes part.
    """

    cache: KVCache
    rows: Tensor
    positions: Tensor
    decoding: int
    longest: int
    chunks: tuple[ChunkSpan, ...]
    guarded: bool = False
    _masks: dict[tuple[int | None, int], Tensor] = field(default_factory=dict)

    def decode_mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """The mask of the decoding queries: 0 or -inf, `(decoding, 1, 1, longest)`."""
        key = (window, -1)
        if key not in self._masks:
            mask = causal_mask(self.positions[: self.decoding], self.longest, window, dtype)
            self._masks[key] = mask[:, None, None]
        return self._masks[key]

    def chunk_mask(self, index: int, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """The mask of a chunk's queries, `(count, start + count)`; None if it is the plain causal triangle."""
        chunk = self.chunks[index]
        end = chunk.start + chunk.count
        if chunk.start == 0 and (window is None or window >= end):
            return None
        key = (window, index)
        if key not in self._masks:
            positions = torch.arange(chunk.start, end, device=self.rows.device)
            self._masks[key] = causal_mask(positions, end, window, dtype)
        return self._masks[key]


def causal_mask(positions: Tensor, keys: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """0 where the query of a position sees a key, else -inf, `(queries, keys)`."""
    queries = positions[:, None]
    places = torch.arange(keys, device=positions.device)
    hidden = places > queries
    if window is not None:
        hidden |= places <= queries - window
    return torch.zeros(hidden.shape, dtype=dtype, device=positions.device).masked_fill_(hidden, float("-inf"))


def engine_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    manytune_step: AttentionStep | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of the engine's tokens, each over its own sequence in the cache.

    Semantics, with seen(t) the positions of t's sequence up to t's own, the last `sliding_window` of them if given,
    and cap(x) = softcap * tanh(x / softcap) or x:

        out[t] = sum_s softmax_{s in seen(t)}(cap(scaling * query[t] . K[s])) V[s]

    Args:
        module: The calling attention module; its `layer_idx` says which layer it is.
        query: Shape `(1, heads, T, head_dim)`.
        key: Shape `(1, key_heads, T, head_dim)`, where `key_heads` divides `heads`.
        value: Shape `(1, key_heads, T, head_dim)`.
        attention_mask: None; the masks are those of the step.
        scaling: Factor of the scores; `head_dim ** -0.5` if None.
        dropout: Must be 0.
        sliding_window: How many last positions a query sees, itself included; None for all.
        softcap: Bound of the scores, as in Gemma 2; None for none.
        manytune_step: Which part of the cache each token writes and reads.
        kwargs: Arguments that other attention functions use.

    Returns:
        The result of shape `(1, T, heads, head_dim)`, and None in place of the attention weights.

    Raises:
        RuntimeError: The step is missing, or the model asks for a term that isn't part of the formula above.
    """
    check_supported(NAME, module, manytune_step, attention_mask, dropout, kwargs)
    assert manytune_step is not None
    step = manytune_step
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    keys, values = step.cache.layer(module.layer_idx)  # type: ignore[arg-type]
    if step.guarded:
        key, value = bounded(key), bounded(value)
    keys[step.rows, :, step.positions] = key[0].transpose(0, 1)
    values[step.rows, :, step.positions] = value[0].transpose(0, 1)
    heads, tokens, size = query.shape[1:]
    groups = heads // keys.shape[1]
    out = query.new_empty((tokens, heads, size))
    n = step.decoding
    if n:
        # Grouped-query attention: the queries that share a key head take the dimension of query positions.
        q = query[0, :, :n].transpose(0, 1).reshape(n, -1, groups, size)
        visible = step.decode_mask(sliding_window, query.dtype)
        found = attend(
            q, keys[:n, :, : step.longest], values[:n, :, : step.longest], visible, scaling, softcap
        )
        out[:n] = found.reshape(n, heads, size)
    for index, chunk in enumerate(step.chunks):
        end = chunk.start + chunk.count
        span = slice(chunk.first, chunk.first + chunk.count)
        q = query[0, :, span].unflatten(0, (-1, groups))  # (key_heads, groups, count, size)
        k, v = (part[chunk.row, :, None, :end].expand(-1, groups, -1, -1) for part in (keys, values))
        mask = step.chunk_mask(index, sliding_window, query.dtype)
        out[span] = attend(q, k, v, mask, scaling, softcap).flatten(0, 1).transpose(0, 1)
    return out.unsqueeze(0), None


def check_supported(
    name: str,
    module: nn.Module,
    step: object | None,
    attention_mask: Tensor | None,
    dropout: float,
    more: Mapping[str, Any],
) -> None:
    """Refuse a call of an attention function that isn't one of the engine's forwards.

    Raises:
        RuntimeError: The step is missing, or the model asks for a term that isn't part of the formula.
    """
    unsupported = [term for term in UNSUPPORTED if more.get(term) is not None]
    if step is None or attention_mask is not None or unsupported or dropout:
        how = " and ".join(unsupported) or "no manytune_step, a mask, or dropout"
        raise RuntimeError(
            f"attention function {name!r} is for the engine's forwards only; {type(module).__name__} called it with "
            f"{how}. Call the model outside of Engine.step()."
        )


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, softcap: float | None
) -> Tensor:
    """Attention of (batch, heads, queries, size); without a mask it is causal."""
    if softcap is None:
        if mask is not None and mask.dim() == 4:
            mask = mask.expand(-1, -1, query.shape[2], -1)
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling
        )
    if mask is None:
        size = query.shape[2]
        mask = torch.full((size, size), float("-inf"), dtype=query.dtype, device=query.device).triu(1)
    scores = softcap * torch.tanh(query @ key.transpose(-1, -2) * scaling / softcap) + mask
    weights = scores.softmax(-1, dtype=torch.promote_types(query.dtype, torch.float32)).to(query.dtype)
    return weights @ value


AttentionInterface.register(NAME, engine_attention_forward)
