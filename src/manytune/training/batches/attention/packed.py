"""The attention function that runs packed batches, registered with transformers under `manytune-packed`.

A model calls it because its configuration names it, which `packed_attention(model)` arranges. The layout
arrives as the keyword argument `manytune_layout` of the model's forward: transformers passes unknown keyword
arguments on to the attention function in every model that declares `_supports_attention_backend`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from manytune.kernels.build import prepare_kernels
from manytune.training.batches.attention import cpu as cpu_attention
from manytune.training.batches.attention import kernel as kernel_attention
from manytune.training.batches.batch import base_model
from manytune.training.batches.layout import Layout, Rectangle

NAME = "manytune-packed"

# Arguments that change what attention computes and that this function doesn't know how to honour.
_UNKNOWN_ARGUMENTS = ("s_aux", "position_bias", "head_mask", "alibi", "sinks")


@contextmanager
def packed_attention(model: nn.Module) -> Iterator[None]:
    """Run a model's attention through packed layouts inside the `with` block; may be nested.

    Enclose the forward and the backward: gradient checkpointing runs the forward again during the backward.

    Args:
        model: A transformers model that `packed_training_obstacle` finds nothing against, or a wrapper of one.
    """
    base = base_model(model)
    prepare_kernels(base)
    before = base.config._attn_implementation
    base.set_attn_implementation(NAME)
    try:
        yield
    finally:
        base.set_attn_implementation(before)


def packed_attention_forward(
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
    manytune_layout: Layout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of packed rows, each over its own sequence.

    Semantics, with path(t) the packed rows from the start of t's sequence to t, the last `sliding_window` of
    them if given, and cap(x) = softcap * tanh(x / softcap) or x:

        out[t] = sum_s softmax_{s in path(t)}(cap(scaling * query[t] . key[s])) value[s]

    Args:
        module: The calling attention module; not read.
        query: Shape `(1, heads, T, head_dim)`.
        key: Shape `(1, key_heads, T, head_dim)`, where `key_heads` divides `heads`.
        value: Shape `(1, key_heads, T, value_dim)`.
        attention_mask: None; the layout takes its place.
        scaling: Factor of the scores; `head_dim ** -0.5` if None.
        dropout: Must be 0: tokens that share a row would share its mask.
        sliding_window: How many last positions a query sees, itself included; None for all.
        softcap: Bound of the scores, as in Gemma 2; None for none.
        manytune_layout: The batch's layout.
        kwargs: Arguments that other attention functions use.

    Returns:
        The result of shape `(1, T, heads, value_dim)`, and None in place of the attention weights.

    Raises:
        RuntimeError: If the layout is missing, or the model asks for a term that isn't part of the formula
            above.
    """
    if manytune_layout is None or attention_mask is not None:
        raise RuntimeError(
            f"attention function {NAME!r} runs batches with a layout alone, and this forward has "
            f"{'none' if manytune_layout is None else 'an attention mask as well'}; "
            "leave `packed_attention(model)` before generating or running padded batches"
        )
    unknown = [name for name in _UNKNOWN_ARGUMENTS if kwargs.get(name) is not None]
    if unknown or dropout:
        asked = " and ".join(unknown) or f"attention dropout {dropout}"
        raise RuntimeError(
            f"{type(module).__name__} asks for {asked}, which packed batches don't compute; "
            "use padded batches for this model"
        )
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    if softcap is None:
        for way in (kernel_attention, cpu_attention):
            if way.suits(query, key, value):
                # (1, heads, T, dim) is a view of (T, heads, dim) in most models.
                rows = (x[0].transpose(0, 1) for x in (query, key, value))
                return way.attend(*rows, manytune_layout, scaling, sliding_window)[None], None
    return _by_rectangle(query, key, value, manytune_layout, scaling, sliding_window, softcap), None


# Each number of rectangles would be compiled again.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _by_rectangle(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    scaling: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """The same through operations that run on any device and know soft caps; autograd does their backward."""
    heads, rows = query.shape[1], query.shape[2]
    query, key, value = (x.transpose(1, 2).reshape(rows, -1) for x in (query, key, value))
    key_heads = heads * key.shape[1] // query.shape[1]
    results = [
        _attend(rectangle, query, key, value, heads, key_heads, scaling, window, softcap)
        for rectangle in layout.rectangles
    ]
    # F.embedding is a gather of rows whose backward runs in parallel on CPU; that of indexing does not.
    out = F.embedding(layout.slots, torch.cat(results) if len(results) > 1 else results[0])
    return out.view(1, rows, heads, -1)


def _attend(
    rectangle: Rectangle,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    heads: int,
    key_heads: int,
    scaling: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """One rectangle's results, of shape `(blocks * queries, heads * value_dim)`."""

    def gather(indices: Tensor, source: Tensor, count: int) -> Tensor:
        gathered = F.embedding(indices, source)  # (blocks, rows, count * dim)
        return gathered.view(*indices.shape, count, -1).transpose(1, 2)

    q = gather(rectangle.query_rows, query, heads)
    k = gather(rectangle.key_rows, key, key_heads)
    v = gather(rectangle.key_rows, value, key_heads)
    mask = rectangle.mask(window)
    if softcap is None:
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=heads != key_heads
        )
    else:
        out = _capped_attention(q, k, v, mask, scaling, softcap)
    return out.transpose(1, 2).reshape(q.shape[0] * q.shape[2], -1)


def _capped_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, softcap: float
) -> Tensor:
    """Attention with bounded scores, which `scaled_dot_product_attention` doesn't offer."""
    if mask is None:
        size = query.shape[2]
        mask = torch.ones(size, size, dtype=torch.bool, device=query.device).tril()
    per_key = query.unflatten(1, (key.shape[1], -1))  # (blocks, key_heads, heads / key_heads, queries, dim)
    scores = per_key @ key.unsqueeze(2).transpose(-1, -2) * scaling
    scores = (softcap * torch.tanh(scores / softcap)).masked_fill(~mask.unsqueeze(-3), float("-inf"))
    weights = scores.softmax(-1, dtype=torch.promote_types(query.dtype, torch.float32)).to(query.dtype)
    return (weights @ value.unsqueeze(2)).flatten(1, 2)


AttentionInterface.register(NAME, packed_attention_forward)
