"""Which rows of a packed batch attend to which, arranged as a few rectangular attention problems.

A packed batch has one row of T tokens. A *path* is the list of packed rows that make up one sequence; paths
may share their beginning. A *block* is the tail of a path that no other block computes: its queries. Its keys
are the whole path, so block b is a rectangle of `queries[b]` by `length[b]`. Blocks of similar size are
padded to one rectangle and become one call of the attention kernel; pad slots live inside attention alone and
cost what the rectangle's rim costs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

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
    _masks: dict[int | None, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def mask(self, window: int | None) -> Tensor | None:
        """True where a query sees a key.

        That is a key not after it and, with a sliding window, fewer than `window` positions before it.

        Returns:
            Shape `(blocks, 1, queries, keys)`; None if the kernel's causal mask says the same. Computed once
            for each window and kept for the other layers.
        """
        if window is not None and window >= self.key_rows.shape[1]:
            window = None
        if self.square and window is None:
            return None
        if window not in self._masks:
            query, key = self.query_positions[:, None, :, None], self.key_positions[:, None, None, :]
            seen = key <= query
            self._masks[window] = seen if window is None else seen & (key > query - window)
        return self._masks[window]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Rectangle:
        """The same rectangle on another device."""
        return Rectangle(
            self.query_rows.to(device, non_blocking=non_blocking),
            self.key_rows.to(device, non_blocking=non_blocking),
            self.query_positions.to(device, non_blocking=non_blocking),
            self.key_positions.to(device, non_blocking=non_blocking),
            self.square,
        )


@dataclass(frozen=True)
class Layout:
    """The attention of one packed batch. Built once, used by every layer.

    Attributes:
        rectangles: The attention problems; each packed row is a query of exactly one of them.
        slots: Where each packed row's result is in the concatenated results of the rectangles. Shape `(T,)`.
    """

    rectangles: tuple[Rectangle, ...]
    slots: Tensor

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Layout:
        """The same layout on another device."""
        rectangles = tuple(r.to(device, non_blocking=non_blocking) for r in self.rectangles)
        return Layout(rectangles, self.slots.to(device, non_blocking=non_blocking))


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
    rectangles = []
    used = 0
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
        rectangles.append(
            Rectangle(
                query_rows=torch.from_numpy(query_rows),
                key_rows=torch.from_numpy(np.where(is_key, paths[members, :width], query_rows[:, :1])),
                query_positions=torch.from_numpy(query_positions),
                key_positions=torch.from_numpy(np.where(is_key, positions, _FAR)),
                square=bool((starts[members] == 0).all()),
            )
        )
    return Layout(tuple(rectangles), torch.from_numpy(slots))


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
