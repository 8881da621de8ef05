"""Which tokens of a forward use which adapter of a stack, in the form in which products are made quickly.

Few tokens that each have an adapter of their own are one batch of small products over the stack itself; many
tokens of one adapter are an ordinary product. Weights are never copied for a step, only activations are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# An adapter with so many decoding tokens gets a product of its own; so do all if there are no more of them than this.
_MANY = 4
_FEW = 2


@dataclass(frozen=True)
class Span:
    """Tokens of one adapter: neighbours, or wherever `index` says.

    Attributes:
        slot: The adapter's place in the stack.
        rows: A slice of the forward's tokens, or their indices.
    """

    slot: int
    rows: slice | Tensor


@dataclass(frozen=True)
class Grid:
    """Tokens that decode, `width` for each of the stack's first `slots` adapters.

    Attributes:
        slots: Number of adapters.
        width: Tokens for each.
        gather: Which token stands in each place, `(slots * width,)`; None if they stand so already.
        scatter: Which place each decoding token finds its result in; None as above.
        bare: True for decoding tokens that have no place, `(tokens, 1)`; None if all have one.
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
        decoding: The first so many tokens of the forward decode.
        grid: Those of them that are multiplied in one batch, or None.
        spans: All other tokens that have an adapter of this stack.
    """

    decoding: int
    grid: Grid | None
    spans: tuple[Span, ...]


def select_tokens(
    decoding: Sequence[int],
    stretches: Sequence[tuple[int, slice]],
    *,
    device: torch.device,
) -> Selection | None:
    """Divide a forward's tokens.

    Args:
        decoding: The slot of each decoding token; -1 for tokens of other stacks or none.
        stretches: Slot and tokens of each stretch of a prompt that belongs to this stack.
        device: Where the tensors go.

    Returns:
        None if no token is the stack's.
    """
    spans = [Span(slot, rows) for slot, rows in stretches]
    of_slot: dict[int, list[int]] = {}
    for token, slot in enumerate(decoding):
        if slot >= 0:
            of_slot.setdefault(slot, []).append(token)
    heavy = [slot for slot, tokens in of_slot.items() if len(tokens) >= _MANY or len(of_slot) <= _FEW]
    for slot in heavy:
        tokens = of_slot.pop(slot)
        neighbours = tokens[-1] - tokens[0] == len(tokens) - 1
        rows = slice(tokens[0], tokens[-1] + 1) if neighbours else torch.tensor(tokens, device=device)
        spans.append(Span(slot, rows))
    grid = None
    if of_slot:
        width = max(map(len, of_slot.values()))
        used = max(of_slot) + 1
        if width == 1 and list(decoding) == list(range(used)):
            grid = Grid(used, 1, None, None, None)
        else:
            gather = [0] * (used * width)
            scatter = [0] * len(decoding)
            bare = [True] * len(decoding)
            for slot, tokens in of_slot.items():
                for place, token in enumerate(tokens):
                    gather[slot * width + place] = token
                    scatter[token] = slot * width + place
                    bare[token] = False
            mask = torch.tensor(bare, device=device)[:, None] if any(bare) else None
            grid = Grid(
                used, width, torch.tensor(gather, device=device), torch.tensor(scatter, device=device), mask
            )
    elif not spans:
        return None
    return Selection(len(decoding), grid, tuple(spans))
