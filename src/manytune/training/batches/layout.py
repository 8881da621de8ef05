"""Which rows of a packed batch attend to which, arranged as a few rectangular attention problems.

A packed batch has one row of T tokens. A *path* is the list of packed rows that make up one sequence; paths
may share a prefix. A *block* is the tail of a path that no other block computes: its queries. Its keys
are the whole path, so block b is a rectangle of `queries[b]` by `length[b]`. Blocks of similar size are
padded to one rectangle and become one call of the attention kernel; pad slots live inside attention alone and
cost what the rectangle's rim costs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

IntArray = npt.NDArray[np.int64]

# A call of the attention kernel (forward and backward, with its gathers) costs about as much as this many
# query-key pairs. Only the choice of rectangles depends on it, never a result.
_CALL_COST = 5_000
_FAR = torch.iinfo(torch.int64).max  # position of a pad key: after every query, so no query sees it


@dataclass(frozen=True)
class Rectangle:
    """Blocks that are attended to in one call, padded to the same number of queries and keys.

    Attributes:
        query_rows: Packed row of each query; pad slots repeat a row. Shape `(blocks, queries)`.
        key_rows: Packed row of each key; pad slots repeat a row. Shape `(blocks, keys)`.
        query_positions: Position of each query in its sequence. Shape `(blocks, queries)`.
        key_positions: Position of each key in its sequence; pad slots lie after every query. Shape `(blocks,
            keys)`.
        square: The queries of each block are its whole path, so that the kernel's own causal mask is the
            mask.
    """

    query_rows: Tensor
    key_rows: Tensor
    query_positions: Tensor
    key_positions: Tensor
    square: bool
    _masks: dict[int | None, Tensor | None] = field(default_factory=dict, repr=False, compare=False)

    def mask(self, window: int | None) -> Tensor | None:
        """True where a query sees a key.

        That is a key not after it and, with a sliding window, fewer than `window` positions before it.

        Returns:
            Shape `(blocks, 1, queries, keys)`; None if the kernel's causal mask says the same. Computed once
            for each window and kept for the other layers.
        """
        if window not in self._masks:
            self._masks[window] = visible(self.query_positions, self.key_positions, self.square, window)
        return self._masks[window]


def visible(
    query_positions: Tensor, key_positions: Tensor, square: bool, window: int | None
) -> Tensor | None:
    """True where a query sees a key, as `Rectangle.mask` has it; its rectangle's attributes are the arguments."""
    if window is not None and window >= key_positions.shape[1]:
        window = None
    if square and window is None:
        return None
    query, key = query_positions[:, None, :, None], key_positions[:, None, None, :]
    seen = key <= query
    return seen if window is None else seen & (key > query - window)


@dataclass(frozen=True, eq=False)
class Layout:
    """The attention of one packed batch. Built once, used by every layer.

    The rectangles' rows and positions are joined, one rectangle after the other, so that compiled code sees the same
    few tensors whatever the number of rectangles.

    Attributes:
        query_rows: Packed row of each query; pad slots repeat a row. Shape `(slots,)`.
        key_rows: Packed row of each key; pad slots repeat a row. Shape `(keys,)`.
        query_positions: Position of each query in its sequence. Shape `(slots,)`.
        key_positions: Position of each key in its sequence; pad slots lie after every query. Shape `(keys,)`.
        shapes: Blocks, queries, keys and 1 if it is square, one rectangle after the other. On the CPU.
        slots: The slot of each packed row: each is a query once. Shape `(T,)`.
        blocks: Where each block's path starts in `key_rows`, its first query's position, its length. On the CPU.
            Shape `(blocks, 3)`.
    """

    query_rows: Tensor
    key_rows: Tensor
    query_positions: Tensor
    key_positions: Tensor
    shapes: Tensor
    slots: Tensor
    blocks: Tensor

    @cached_property
    def rectangles(self) -> tuple[Rectangle, ...]:
        """The attention problems, as views."""
        return tuple(
            Rectangle(
                own.queries_of(self.query_rows),
                own.keys_of(self.key_rows),
                own.queries_of(self.query_positions),
                own.keys_of(self.key_positions),
                own.square,
            )
            for own in extents(self.shapes)
        )

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Layout:
        """The same layout on another device."""
        query_rows, key_rows, query_positions, key_positions, slots = (
            tensor.to(device, non_blocking=non_blocking)
            for tensor in (
                self.query_rows,
                self.key_rows,
                self.query_positions,
                self.key_positions,
                self.slots,
            )
        )
        return Layout(query_rows, key_rows, query_positions, key_positions, self.shapes, slots, self.blocks)


class Extent(NamedTuple):
    """Where one rectangle's queries and keys are in the layout's tensors."""

    blocks: int
    queries: slice
    keys: slice
    square: bool

    def queries_of(self, tensor: Tensor) -> Tensor:
        """What a tensor holds for this rectangle's queries, block by block."""
        own = tensor[self.queries]
        return own.view(self.blocks, -1, *own.shape[1:])

    def keys_of(self, tensor: Tensor) -> Tensor:
        """What a tensor holds for this rectangle's keys, block by block."""
        own = tensor[self.keys]
        return own.view(self.blocks, -1, *own.shape[1:])


def extents(shapes: Tensor) -> list[Extent]:
    """The rectangles' places.

    Args:
        shapes: As a layout holds them.
    """
    found, query, key = [], 0, 0
    for blocks, queries, keys, square in shapes.view(-1, 4).tolist():
        own = Extent(
            blocks, slice(query, query + blocks * queries), slice(key, key + blocks * keys), bool(square)
        )
        found.append(own)
        query, key = own.queries.stop, own.keys.stop
    return found


def build_layout(paths: IntArray, starts: IntArray, lengths: IntArray) -> Layout:
    """Arrange blocks into rectangles.

    Args:
        paths: Packed row of each position of each path; anything beyond a path's length. Shape `(blocks,
            longest)`.
        starts: First position of each path that is its block's own query. Shape `(blocks,)`.
        lengths: Length of each path; more than its start. Shape `(blocks,)`.

    Returns:
        A layout in which every position from a path's start to its length is a query once.
    """
    queries = lengths - starts
    slots = np.empty(int(queries.sum()), dtype=np.int64)
    columns: list[list[IntArray]] = [[], [], [], []]
    shapes, blocks = [], []
    used = keys = 0
    for members in _partition(queries, lengths):
        width, height = int(lengths[members].max()), int(queries[members].max())
        steps = np.arange(height)
        # Pad queries repeat the block's last query, so that no row of scores is fully masked.
        query_positions = np.minimum(starts[members, None] + steps, lengths[members, None] - 1)
        query_rows = np.take_along_axis(paths[members], query_positions, axis=1)
        positions = np.broadcast_to(np.arange(width), (len(members), width))
        is_key = positions < lengths[members, None]
        real = steps < queries[members, None]
        slots[query_rows[real]] = used + real.ravel().nonzero()[0]
        used += real.size
        key_rows = np.where(is_key, paths[members, :width], query_rows[:, :1])
        key_positions = np.where(is_key, positions, _FAR)
        for column, own in zip(columns, (query_rows, key_rows, query_positions, key_positions), strict=True):
            column.append(own.ravel())
        offsets = keys + width * np.arange(len(members))
        blocks.append(np.stack([offsets, starts[members], lengths[members]], axis=1))
        keys += key_rows.size
        shapes.append((len(members), height, width, (starts[members] == 0).all()))
    flat = [torch.from_numpy(np.concatenate(column)) for column in columns]
    return Layout(
        query_rows=flat[0],
        key_rows=flat[1],
        query_positions=flat[2],
        key_positions=flat[3],
        shapes=torch.from_numpy(np.array(shapes, dtype=np.int64).ravel()),
        slots=torch.from_numpy(slots),
        blocks=torch.from_numpy(np.concatenate(blocks)),
    )


def _partition(queries: IntArray, lengths: IntArray) -> list[IntArray]:
    """Split blocks into groups with the least total cost of their padded rectangles.

    Exact among the groups that are neighbours when blocks are sorted by size: dynamic programming over the
    last group's first member.
    """
    order = np.lexsort((lengths, queries))
    sorted_queries, sorted_lengths = queries[order], lengths[order]
    best = np.zeros(len(order) + 1)
    first = np.zeros(len(order) + 1, dtype=np.int64)
    for end in range(1, len(order) + 1):
        keys = np.maximum.accumulate(sorted_lengths[:end][::-1])[::-1]
        cost = best[:end] + _CALL_COST + np.arange(end, 0, -1) * sorted_queries[end - 1] * keys
        first[end] = int(cost.argmin())
        best[end] = cost[first[end]]
    groups = []
    end = len(order)
    while end:
        groups.append(order[first[end] : end])
        end = int(first[end])
    return groups
