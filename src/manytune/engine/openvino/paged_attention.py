"""The engine's attention over pages in torch, for forwards that OpenVINO doesn't run.

Each sequence's pages are gathered for every layer, which costs a copy that the contiguous cache saves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from manytune.engine.attention import attend, causal_mask, check_supported
from manytune.engine.kv_cache import bounded
from manytune.engine.openvino.graph import PAGE
from manytune.engine.openvino.paged_cache import PagedCache

NAME = "manytune-engine-paged"


@dataclass(frozen=True)
class PagedSpan:
    """Tokens of one sequence.

    Attributes:
        pages: The sequence's pages.
        tokens: Where they are in the forward.
        start: Position of the first.
    """

    pages: Tensor
    tokens: slice
    start: int

    @property
    def end(self) -> int:
        """Length of the sequence with them."""
        return self.start + len(range(self.tokens.start, self.tokens.stop))


@dataclass(frozen=True)
class PagedStep:
    """Which part of the cache the tokens of a forward write and read."""

    cache: PagedCache
    spans: Sequence[PagedSpan]


def paged_attention_forward(
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
    manytune_step: PagedStep | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """See `engine_attention_forward`: the same, sequence by sequence, over pages."""
    check_supported(NAME, module, manytune_step, attention_mask, dropout, kwargs)
    assert manytune_step is not None
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    keys, values = manytune_step.cache.layer(module.layer_idx)  # type: ignore[arg-type]
    heads, tokens, size = query.shape[1:]
    out = query.new_empty((tokens, heads, size))
    for span in manytune_step.spans:
        positions = torch.arange(span.start, span.end)
        pages, places = span.pages[positions // PAGE], positions % PAGE
        keys[pages, :, places] = bounded(key[0, :, span.tokens].transpose(0, 1)).to(keys.dtype)
        values[pages, :, places] = bounded(value[0, :, span.tokens].transpose(0, 1)).to(values.dtype)
        q = query[0, :, span.tokens].unflatten(0, (keys.shape[1], -1))  # (key heads, groups, count, size)
        k, v = (_gathered(part, span, query.dtype).expand(-1, q.shape[1], -1, -1) for part in (keys, values))
        mask = causal_mask(positions, span.end, sliding_window, query.dtype)
        out[span.tokens] = attend(q, k, v, mask, scale, softcap).flatten(0, 1).transpose(0, 1)
    return out.unsqueeze(0), None


def _gathered(part: Tensor, span: PagedSpan, dtype: torch.dtype) -> Tensor:
    """A sequence's keys or values, (key heads, 1, length, size)."""
    found = part[span.pages[: -(-span.end // PAGE)]]  # (pages, key heads, PAGE, size)
    return found.transpose(0, 1).flatten(1, 2)[:, None, : span.end].to(dtype)


AttentionInterface.register(NAME, paged_attention_forward)
