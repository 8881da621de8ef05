"""Which tokens of a forward use which adapter of a stack, in the form in which products are made quickly.

Few tokens that each have an adapter of their own are one batch of small products over the stack itself; many
tokens of one adapter are an ordinary product. Weights are never copied for a step, only activations are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# An adapter with so many tokens gets a product of its own; so do all if there are no more of them than this.
_MANY = 4
_FEW = 2
# Adapters with so many tokens at most, and equally many each, are one batch of products: samples of a static batch.
_MOST_IN_GRID = 256


@dataclass(frozen=True)
class Span:
    """Tokens of one adapter: neighbours, or wherever `rows` says.

    Attributes:
        slot: The adapter's place in the stack.
        rows: A slice of the forward's tokens, or their indices.
    """

    slot: int
    rows: slice | Tensor


@dataclass(frozen=True)
class Grid:
    """Tokens at a forward's beginning, `width` for each of the stack's first `slots` adapters.

    Attributes:
        slots: Number of adapters.
        width: Tokens for each.
        gather: Which token is in each place, `(slots * width,)`; None if they are in this order already.
        scatter: Which place each token finds its result in; None as above.
        bare: True for tokens that have no place, `(tokens, 1)`; None if all have one.
    """

    slots: int
    width: int
    gather: Tensor | None
    scatter: Tensor | None
    bare: Tensor | None


@dataclass(frozen=True)
class Selection:
    """The tokens of one stack.

    Attributes:
        single: The first so many tokens of the forward have an owner each.
        grid: Those of them that are multiplied in one batch, or None.
        spans: All other tokens that have an adapter of this stack.
    """

    single: int
    grid: Grid | None
    spans: tuple[Span, ...]


def select_tokens(
    single: Sequence[int], chunks: Sequence[tuple[int, slice]], *, device: torch.device
) -> Selection | None:
    """Divide a forward's tokens.

    Args:
        single: The slot of each token at the beginning; -1 for tokens of other stacks or none.
        chunks: Slot and tokens of each chunk behind them that belongs to this stack.
        device: Where the tensors go.

    Returns:
        None if no token is the stack's.
    """
    spans = [Span(slot, rows) for slot, rows in chunks]
    of_slot: dict[int, list[int]] = {}
    for token, slot in enumerate(single):
        if slot >= 0:
            of_slot.setdefault(slot, []).append(token)
    counts = {len(tokens) for tokens in of_slot.values()}
    alike = len(counts) == 1 and max(counts) <= _MOST_IN_GRID
    few = len(of_slot) <= _FEW
    for slot in [s for s, tokens in of_slot.items() if few or (len(tokens) >= _MANY and not alike)]:
        spans.append(Span(slot, _rows(of_slot.pop(slot), device)))
    if not of_slot:
        return Selection(len(single), None, tuple(spans)) if spans else None
    return Selection(len(single), _grid(single, of_slot, device), tuple(spans))


def _rows(tokens: list[int], device: torch.device) -> slice | Tensor:
    neighbours = tokens[-1] - tokens[0] == len(tokens) - 1
    return slice(tokens[0], tokens[-1] + 1) if neighbours else torch.tensor(tokens, device=device)


def _grid(single: Sequence[int], of_slot: dict[int, list[int]], device: torch.device) -> Grid:
    width = max(map(len, of_slot.values()))
    used = max(of_slot) + 1
    if list(single) == [slot for slot in range(used) for _ in range(width)]:
        return Grid(used, width, None, None, None)
    gather = [0] * (used * width)
    scatter = [0] * len(single)
    bare = [True] * len(single)
    for slot, tokens in of_slot.items():
        for place, token in enumerate(tokens):
            gather[slot * width + place] = token
            scatter[token] = slot * width + place
            bare[token] = False
    mask = torch.tensor(bare, device=device)[:, None] if any(bare) else None
    return Grid(used, width, torch.tensor(gather, device=device), torch.tensor(scatter, device=device), mask)
