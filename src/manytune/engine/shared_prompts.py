"""Computing a prefix that several prompts of a batch share only once.

Several questions on one document are prompts with a long common prefix. Its keys and values are the same in each of
them, so they are computed in one row and copied to the others; the rest of each prompt follows. Semantics: the prompts
are read one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from manytune.cache_argument import cache_argument
from manytune.engine.base_model import base_of, has_virtual_tokens
from manytune.model.peft_model import PeftModel
from manytune.token_prefixes import common_prefix

# A common prefix is shared if it is at least this much of the shorter prompt; and sharing has to save a fifth of the
# tokens, since it takes two forwards instead of one.
_SHARED = 0.5
_WORTHWHILE = 0.8


@dataclass(frozen=True)
class Prefilled:
    """Prompts whose prefixes have been computed.

    Attributes:
        input_ids: `(B, P + S)`: the prefixes, left padded to P, and the rest of each prompt, left padded to S.
        attention_mask: `(B, P + S)`, 0 for pad tokens.
        cache: Keys and values of the first P columns.
    """

    input_ids: Tensor
    attention_mask: Tensor
    cache: DynamicCache


@dataclass(frozen=True)
class _Group:
    """Prompts with a common prefix: their rows, and how many tokens they share."""

    rows: tuple[int, ...]
    length: int


def prefill_shared(model: Any, prompts: Sequence[Sequence[int]], *, pad_id: int) -> Prefilled | None:
    """Compute each prefix that prompts share once.

    Args:
        model: A causal language model, plain or with adapters, in evaluation mode.
        prompts: Token ids.
        pad_id: Any valid token id.

    Returns:
        What `generate` needs to continue; None if sharing would save little, or if the model's cache has something else
        than the keys and values of every position.
    """
    groups = _groups(prompts)
    widest = max(group.length for group in groups)
    rest = max(len(prompts[row]) - group.length for group in groups for row in group.rows)
    computed = len(groups) * widest + len(prompts) * rest
    if computed > _WORTHWHILE * len(prompts) * max(map(len, prompts)) or not _keeps_every_position(model):
        return None
    device = next(model.parameters()).device
    ids = torch.full((len(prompts), widest + rest), pad_id)
    mask = torch.zeros((len(prompts), widest + rest), dtype=torch.long)
    source = torch.empty(len(prompts), dtype=torch.long)  # which group's keys and values a row gets
    for number, group in enumerate(groups):
        for row in group.rows:
            prompt = torch.tensor(prompts[row])
            for part, end in ((prompt[: group.length], widest), (prompt[group.length :], widest + rest)):
                ids[row, end - len(part) : end] = part
                mask[row, end - len(part) : end] = 1
            source[row] = number
    ids, mask = ids.to(device), mask.to(device)
    firsts = [group.rows[0] for group in groups]
    cache = DynamicCache(config=base_of(model).config)
    with torch.no_grad():
        prefix_mask = mask[firsts, :widest]
        model(
            input_ids=ids[firsts, :widest],
            attention_mask=prefix_mask,
            position_ids=(prefix_mask.cumsum(dim=1) - 1).clamp(min=0),
            use_cache=True,
            logits_to_keep=1,
            **{cache_argument(base_of(model)) or "past_key_values": cache},
        )
    cache.batch_select_indices(source.to(device))
    return Prefilled(ids, mask, cache)


def _groups(prompts: Sequence[Sequence[int]]) -> list[_Group]:
    """Group prompts by common prefixes, which leave at least one token of each prompt."""
    order = sorted(range(len(prompts)), key=lambda row: tuple(prompts[row]))
    runs = [[order[0]]]
    shared = [len(prompts[order[0]])]
    for before, row in pairwise(order):
        common = common_prefix(prompts[before], prompts[row])
        if common >= _SHARED * min(len(prompts[before]), len(prompts[row])):
            runs[-1].append(row)
            shared[-1] = min(shared[-1], common)
        else:
            runs.append([row])
            shared.append(len(prompts[row]))
    return [
        _Group(tuple(run), min(length, min(len(prompts[row]) for row in run) - 1))
        for run, length in zip(runs, shared, strict=True)
    ]


def _keeps_every_position(model: Any) -> bool:
    """Whether the cache is keys and values of all positions: no sliding window, no recurrent state.

    In a window the pad tokens between a prefix and the rest of its prompt would count as positions; virtual tokens
    would come before the prefix.
    """
    if not isinstance(model, (PeftModel, PreTrainedModel)) or has_virtual_tokens(model):
        return False
    layers = DynamicCache(config=base_of(model).config).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)
