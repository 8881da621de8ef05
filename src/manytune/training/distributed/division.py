"""Which process computes which rows of a step.

The loss of a step is the mean over all target tokens of its accumulation window, so that it doesn't matter which
process computes what of it, but for rounding. Where `accumulation` is a multiple of the number of processes, each gets
whole forward passes; otherwise each forward pass is divided by rows. Either way the process that computes most tokens
computes as few as possible, and a row's sequences stay together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from torch.utils.data import Sampler

from manytune.training.batches.grouping import Row, computed_tokens, cut_within


def passes_of(accumulation: int, processes: int) -> int:
    """Forward passes of one process in one optimizer step."""
    return accumulation if accumulation % processes else accumulation // processes


def divide(rows: Sequence[Row], parts: int, *, layout: str) -> list[list[int]]:
    """Divide a batch by rows, so that the part that computes most tokens computes as few as possible.

    Rows with a common prefix come one after the other, so that as a rule one part computes it, and once.

    Args:
        rows: The sequences of each row.
        parts: How many parts; there may be fewer rows.
        layout: How the parts will be laid out.

    Returns:
        For each part the indices of its rows, perhaps none.
    """
    order = sorted(range(len(rows)), key=lambda index: _place(rows[index], layout))
    low = max(computed_tokens([row], layout) for row in rows)
    high = computed_tokens(rows, layout)
    while low < high:  # the smallest budget within which the order can be cut into so many parts
        middle = (low + high) // 2
        if len(cut_within(middle, order, rows, layout)) <= parts:
            high = middle
        else:
            low = middle + 1
    cut = [list(part) for part in cut_within(low, order, rows, layout)]
    return cut + [[] for _ in range(parts - len(cut))]


def deal(costs: Sequence[int], parts: int) -> list[list[int]]:
    """Deal whole batches to processes: equally many to each, and the largest sum of costs as small as possible.

    The largest goes first, and each to whoever has least so far (LPT, R. L. Graham, 1969: at most a third above the
    optimum).

    Args:
        costs: Of each batch.
        parts: How many processes.

    Returns:
        For each process the indices of its batches, in their order.
    """
    most = -(-len(costs) // parts)
    dealt: list[list[int]] = [[] for _ in range(parts)]
    for index in sorted(range(len(costs)), key=lambda index: -costs[index]):
        free = [part for part in dealt if len(part) < most]
        min(free, key=lambda part: (sum(costs[one] for one in part), len(part))).append(index)
    return [sorted(part) for part in dealt]


class DividedBatches(Sampler[list[int]]):
    """One process's part of every batch; equally many parts for each, of which some may be empty.

    Args:
        batches: All batches of an epoch, as indices of rows.
        rows: The sequences of each row.
        accumulation: Batches of one optimizer step.
        layout: How they are laid out.
        rank: The process.
        processes: How many there are.
    """

    def __init__(
        self,
        batches: Sampler[list[int]],
        rows: Sequence[Row],
        *,
        accumulation: int,
        layout: str,
        rank: int,
        processes: int,
    ) -> None:
        self._batches = batches
        self._rows = rows
        self._accumulation = accumulation
        self._layout = layout
        self._rank, self._processes = rank, processes
        self.sampler: Any = getattr(batches, "sampler", None)  # accelerate gives it the epoch

    def __len__(self) -> int:
        count, accumulation = len(self._batches), self._accumulation  # type: ignore[arg-type]  # each has a length
        whole, rest = divmod(count, accumulation)
        passes = passes_of(accumulation, self._processes)
        return whole * passes + (rest if passes == accumulation else -(-rest // self._processes))

    def __iter__(self) -> Iterator[list[int]]:
        batches = iter(self._batches)
        while window := list(islice(batches, self._accumulation)):
            yield from self._own(window)

    def _own(self, window: Sequence[Sequence[int]]) -> Iterable[list[int]]:
        if passes_of(self._accumulation, self._processes) == self._accumulation:
            for batch in window:
                rows = [self._rows[index] for index in batch]
                yield [
                    batch[place] for place in divide(rows, self._processes, layout=self._layout)[self._rank]
                ]
            return
        costs = [computed_tokens([self._rows[index] for index in batch], self._layout) for batch in window]
        own = deal(costs, self._processes)[self._rank]
        yield from (list(window[index]) for index in own)
        yield from [[]] * (-(-len(window) // self._processes) - len(own))


def _place(row: Row, layout: str) -> Any:
    """What rows are sorted by: those that cost least together come one after the other."""
    if layout == "shared-prefix":
        return (*row[0].prompt_ids, *row[0].completion_ids)
    return max(len(one.prompt_ids) + len(one.completion_ids) for one in row)
