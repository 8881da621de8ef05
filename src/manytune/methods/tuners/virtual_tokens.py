"""Making room for virtual tokens in a call of a transformers model: masks, positions, labels, caches."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache

from manytune.errors import ConfigError

#: The label that marks a position without loss.
IGNORED = -100


def bound(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call of a module's `forward`, by name."""
    signature = inspect.signature(module.forward)
    arguments = dict(signature.bind_partial(*args, **kwargs).arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            arguments.update(arguments.pop(name, {}))
    return arguments


def prepend_columns(mask: Any, tokens: int) -> Tensor:
    """Let every query see `tokens` more keys, in front.

    Args:
        mask: (batch, keys), 1 where there is a token; or (batch, heads, queries, keys), True or 0.0 where a
            query sees a key and False or a large negative number where it doesn't.
        tokens: How many.

    Returns:
        The same kind of mask with keys + `tokens` columns.

    Raises:
        ConfigError: The mask is of another kind.
    """
    _check_kind(mask)
    front = mask.new_full((*mask.shape[:-1], tokens), _visible(mask))
    return torch.cat((front, mask), dim=-1)


def prepend_rows(mask: Any, tokens: int, *, causal: bool) -> Tensor:
    """Let `tokens` more tokens, in front, see and be seen. Masks as for `prepend_columns`.

    Args:
        mask: Of as many queries as keys.
        tokens: How many.
        causal: Whether a token sees only those before it.
    """
    wider = prepend_columns(mask, tokens)
    if wider.dim() == 2:
        return wider
    if causal:
        hidden = torch.finfo(mask.dtype).min if mask.is_floating_point() else 0
        rows = mask.new_full((*mask.shape[:2], tokens, wider.shape[-1]), hidden)
        before = torch.ones(tokens, wider.shape[-1], dtype=torch.bool, device=mask.device).tril()
        rows = rows.masked_fill(before, _visible(mask))
    else:
        # A virtual token sees what any token sees.
        rows = wider.amax(dim=-2, keepdim=True).expand(-1, -1, tokens, -1)
    return torch.cat((rows, wider), dim=-2)


def shifted_positions(positions: Tensor, tokens: int, *, prepend: bool) -> Tensor:
    """Position ids (batch, length) behind `tokens` virtual tokens, whose own come first if `prepend`.

    Raises:
        ConfigError: They have more dimensions, as those of some multimodal models.
    """
    if positions.dim() != 2:
        raise ConfigError(
            f"position_ids: expected (batch, length) behind virtual tokens, found {tuple(positions.shape)}."
        )
    if not prepend:
        return positions + tokens
    own = torch.arange(tokens, dtype=positions.dtype, device=positions.device).expand(positions.shape[0], -1)
    return torch.cat((own, positions + tokens), dim=-1)


def prepend_value(rows: Tensor, tokens: int, value: int) -> Tensor:
    """(batch, length) with `tokens` columns of one value in front."""
    return torch.cat((rows.new_full((rows.shape[0], tokens), value), rows), dim=-1)


def is_fresh(cache: Any) -> bool:
    """Whether a call is the first of its sequence: there is nothing in its cache, virtual tokens included.

    Raises:
        ConfigError: The cache has a fixed size, which leaves no room for virtual tokens.
    """
    if cache is None:
        return True
    own = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
    if not isinstance(own, DynamicCache):
        kind = type(own).__name__ if isinstance(own, Cache) else f"a {type(own).__name__}"
        raise ConfigError(
            f"past_key_values: virtual tokens need a cache that grows (DynamicCache), found {kind}. Leave "
            "cache_implementation at its default."
        )
    return bool(cache.get_seq_length() == 0)


def _visible(mask: Tensor) -> float:
    return 0.0 if mask.is_floating_point() and mask.dim() == 4 else 1.0


def _check_kind(mask: Any) -> None:
    if not isinstance(mask, Tensor) or mask.dim() not in (2, 4):
        found = f"{mask.dim()} dimensions" if isinstance(mask, Tensor) else f"a {type(mask).__name__}"
        raise ConfigError(
            "attention_mask: with virtual tokens it is a tensor of (batch, length) or (batch, heads, queries, keys), "
            f"found {found}."
        )
