"""Reading what several prompts of a batch begin with only once.

Several questions on one document are prompts with a long common beginning. Its keys and values are the same in
each of them, so they are computed in one row and copied to the others; the rest of each prompt follows.
Semantics: the prompts are read one by one.
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

from manytune.model.peft_model import PeftModel
from manytune.token_prefixes import common_prefix

# Two prompts share a beginning if it is at least this much of the shorter one; and sharing has to save a fifth of the
# tokens, since it reads in two steps what would be one.
_SHARED = 0.5
_WORTHWHILE = 0.8


@dataclass(frozen=True)
class Prefilled:
    """Prompts of which the beginnings were read.

    Attributes:
        input_ids: `(B, P + S)`: the beginnings, left padded to P, and the rests, left padded to S.
        attention_mask: `(B, P + S)`, 0 for pad tokens.
        cache: Keys and values of the first P columns.
    """

    input_ids: Tensor
    attention_mask: Tensor
    cache: DynamicCache


@dataclass(frozen=True)
class _Group:
    """Prompts that begin alike: their places, and how many tokens they share."""

    rows: tuple[int, ...]
    length: int


def prefill_shared(model: Any, prompts: Sequence[Sequence[int]], *, pad_id: int) -> Prefilled | None:
    """Read the beginnings that prompts share, each once.

    Args:
        model: A causal language model, plain or with adapters, in evaluation mode.
        prompts: Token ids.
        pad_id: Any valid token id.

    Returns:
        What `generate` needs to go on; None if sharing would save little, or if the model keeps something else
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
    cache = DynamicCache(config=_innermost(model).config)
    with torch.no_grad():
        begun = mask[firsts, :widest]
        model(
            input_ids=ids[firsts, :widest],
            attention_mask=begun,
            position_ids=(begun.cumsum(dim=1) - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
    cache.batch_select_indices(source.to(device))
    return Prefilled(ids, mask, cache)


def _groups(prompts: Sequence[Sequence[int]]) -> list[_Group]:
    """Put prompts that begin alike together; a rest of at least one token remains of each."""
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

    In a window the pad tokens between a beginning and its rest would count as positions.
    """
    if isinstance(model, PeftModel):
        # Virtual tokens come before the beginning, alone or together with a method in the layers.
        if any(model.peft_config[name].is_prompt_learning for name in model.tuner.active_adapters):
            return False
    elif not isinstance(model, PreTrainedModel):
        return False
    inner = _innermost(model)
    layers = DynamicCache(config=inner.config).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def _innermost(model: Any) -> Any:
    return model.get_base_model() if isinstance(model, PeftModel) else model
