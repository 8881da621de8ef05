"""Calls of the C++ kernel for low-rank updates of rows that have different adapters.

Formula: `sources/own_updates.cpp`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from manytune.kernels.operands import pointer

#: Of one adapter.
MOST_RANKS = 64


@dataclass(frozen=True)
class Blocks:
    """Rows of one adapter after those of the other.

    Attributes:
        order: Indices of rows, `(rows,)`, int64.
        ends: Where in `order` each block ends, `(blocks,)`, int64; it begins where the one before ends.
        arguments: Addresses of the two and the number of blocks, as the kernel takes them.
    """

    order: Tensor
    ends: Tensor
    arguments: tuple[Any, ...] = field(init=False)

    def __post_init__(self) -> None:
        arguments = pointer(self.order), pointer(self.ends), ctypes.c_int64(len(self.ends))
        object.__setattr__(self, "arguments", arguments)


@dataclass(frozen=True)
class OwnWeights:
    """What each block's adapter has at one layer.

    Attributes:
        downs: D of each, (r, in), or None for no update.
        ups: U of each, (out, r), or None.
        entries: Where they are, and r: `(3 * blocks,)`, int64.
        scalings: s of each, `(blocks,)`, float32.
        arguments: Addresses of entries and scalings, as the kernel takes them.
    """

    downs: Sequence[Tensor | None]
    ups: Sequence[Tensor | None]
    entries: Tensor
    scalings: Tensor
    arguments: tuple[Any, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "arguments", (pointer(self.entries), pointer(self.scalings)))


def suits(down: Tensor, up: Tensor) -> bool:
    """Whether the kernel takes an adapter's weights.

    Args:
        down: D, (r, in).
        up: U, (out, r).
    """
    return (
        down.dtype == up.dtype == torch.float32
        and down.is_cpu
        and up.is_cpu
        and 0 < down.shape[0] <= MOST_RANKS
        and down.is_contiguous()
        and up.is_contiguous()
    )


def own_weights(
    downs: Sequence[Tensor | None], ups: Sequence[Tensor | None], scalings: Sequence[float]
) -> OwnWeights:
    """Weights that suit the kernel, to be read where they are.

    Args:
        downs: D of each block's adapter, or None.
        ups: U of each.
        scalings: s of each.
    """
    entries: list[int] = []
    for down, up in zip(downs, ups, strict=True):
        entries += (
            (0, 0, 0) if down is None or up is None else (down.data_ptr(), up.data_ptr(), down.shape[0])
        )
    return OwnWeights(downs, ups, torch.tensor(entries), torch.tensor(scalings, dtype=torch.float32))


def add(library: ctypes.CDLL, x: Tensor, y: Tensor, blocks: Blocks, weights: OwnWeights) -> None:
    """Add s U D x to each row of y, with U, D and s of its block's adapter.

    Args:
        library: The compiled kernels.
        x: Shape `(N, in)`; rows are contiguous, and any distance apart.
        y: Shape `(N, out)`, as x. Added to.
        blocks: Which rows are whose.
        weights: Of those.
    """
    library.own_updates(
        pointer(x),
        ctypes.c_int64(x.stride(0)),
        pointer(y),
        ctypes.c_int64(y.stride(0)),
        *blocks.arguments,
        *weights.arguments,
        ctypes.c_int64(x.shape[1]),
        ctypes.c_int64(y.shape[1]),
        torch.get_num_threads(),
    )
