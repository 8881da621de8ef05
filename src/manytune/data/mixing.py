"""Mixtures of tasks: how often each comes up, and which of its rows an epoch holds.

Rates follow the T5 paper (Raffel et al. 2020, arXiv:1910.10683, section 3.5.2), for tasks of n_1 … n_k rows:

    proportional   rate_i ∝ min(n_i, cap)           every row as often as any other, but none of a giant's tail
    temperature    rate_i ∝ min(n_i, cap)^(1/T)     T = 1 is proportional; a higher T brings the rates closer
    explicit       rate_i ∝ weight_i

An epoch has Σ min(n_i, cap) rows in all (without a cap: as many rows as there are), divided at the rates. Without
cap and temperature it is every row once. Each task's rows come in an order of their own, all of them before any
comes again, and that order goes on from epoch to epoch: a task with a small share meets its remaining rows in the
next epoch, a task with a large one starts again in another order. What an epoch holds depends on the sizes, the
names, the seed and the epoch's number alone, so that a resumed run meets the same rows.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from manytune.errors import DataError

Strategy = Literal["proportional", "temperature", "explicit"]


def proportional_rates(sizes: Sequence[int], *, cap: int | None = None) -> tuple[float, ...]:
    """Return each task's share of the rows, in proportion to its size.

    Args:
        sizes: Rows of each task, at least one each.
        cap: The most rows that a task counts for (the paper's artificial limit K); `None` for no limit.

    Raises:
        DataError: There is no task, a size is below 1, or `cap` is.
    """
    return _shares([float(size) for size in _capped(sizes, cap)])


def temperature_rates(
    sizes: Sequence[int], temperature: float, *, cap: int | None = None
) -> tuple[float, ...]:
    """Return each task's share of the rows, in proportion to the T-th root of its size.

    Args:
        sizes: Rows of each task, at least one each.
        temperature: T, at least 1; the larger, the nearer to equal shares.
        cap: The most rows that a task counts for; `None` for no limit.

    Raises:
        DataError: There is no task, a size or `cap` is below 1, or the temperature is.
    """
    if not (math.isfinite(temperature) and temperature >= 1):
        raise DataError(f"a mixture's temperature is a number from 1; found {temperature:g}")
    return _shares([size ** (1 / temperature) for size in _capped(sizes, cap)])


def explicit_rates(weights: Sequence[float]) -> tuple[float, ...]:
    """Return each task's share of the rows, in proportion to its weight.

    Raises:
        DataError: There is no task, or a weight isn't a number above 0.
    """
    if any(not (math.isfinite(weight) and weight > 0) for weight in weights):
        found = ", ".join(f"{weight:g}" for weight in weights)
        raise DataError(f"a task's weight is a number above 0; found {found}")
    return _shares(weights)


def divide_rows(rates: Sequence[float], rows: int) -> tuple[int, ...]:
    """Return how many of an epoch's rows each task gets: the nearest whole numbers that add up.

    Each is its exact share rounded down, and those with the largest remainders get one more (the earlier task
    where they are equal).
    """
    exact = [rate * rows for rate in rates]
    counts = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda task: (counts[task] - exact[task], task))
    for task in by_remainder[: rows - sum(counts)]:
        counts[task] += 1
    return tuple(counts)


@dataclass(frozen=True)
class TaskShare:
    """What a task of a mixture comes to.

    Args:
        name: The task.
        rows: Its rows.
        rows_per_epoch: How many of them an epoch holds, again and again if they are more than there are.
        rate: The share of an epoch that it is meant to have.
    """

    name: str
    rows: int
    rows_per_epoch: int
    rate: float


@dataclass(frozen=True)
class Mixture:
    """Tasks whose rows follow one another, and how many of each an epoch holds.

    Args:
        names: The tasks, in the order of their rows.
        sizes: Rows of each.
        rates: The share of an epoch that each is meant to have.
        counts: The rows of an epoch that each has.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    rates: tuple[float, ...]
    counts: tuple[int, ...]

    @property
    def rows_per_epoch(self) -> int:
        """Rows of one epoch of the mixture."""
        return sum(self.counts)

    @property
    def shares(self) -> tuple[TaskShare, ...]:
        """The mixture task by task."""
        return tuple(
            TaskShare(*task) for task in zip(self.names, self.sizes, self.counts, self.rates, strict=True)
        )

    def epoch(self, seed: int, epoch: int) -> list[int]:
        """Return the rows of one epoch in their order, as positions in the tasks' joined rows.

        Args:
            seed: Decides the order, with the epoch.
            epoch: The epoch's number, from 0.
        """
        rows: list[int] = []
        start = 0
        for name, size, count in zip(self.names, self.sizes, self.counts, strict=True):
            rows += [start + row for row in _part_of_order(name, size, seed, epoch * count, count)]
            start += size
        return [rows[place] for place in _order((seed, epoch), len(rows))]


def mix(
    sizes: Mapping[str, int],
    *,
    strategy: Strategy = "proportional",
    cap: int | None = None,
    temperature: float | None = None,
    weights: Mapping[str, float] | None = None,
) -> Mixture:
    """Return the mixture of tasks that the options describe.

    Args:
        sizes: Rows of each task by name, in the order of their rows.
        strategy: How the rates come about; see the module's description.
        cap: The most rows that a task counts for; with `"proportional"` and `"temperature"`.
        temperature: With `"temperature"`, which needs it.
        weights: Of every task, with `"explicit"`.

    Raises:
        DataError: An option is missing, doesn't go with the strategy or is out of range, or a task would get
            no row at all.
    """
    check_options(tuple(sizes), strategy=strategy, cap=cap, temperature=temperature, weights=weights)
    numbers = tuple(sizes.values())
    if strategy == "temperature":
        assert temperature is not None  # checked above
        rates = temperature_rates(numbers, temperature, cap=cap)
    elif strategy == "explicit":
        assert weights is not None  # checked above
        rates = explicit_rates([weights[name] for name in sizes])
    else:
        rates = proportional_rates(numbers, cap=cap)
    rows = sum(_capped(numbers, cap))
    counts = divide_rows(rates, rows)
    for name, rate, count in zip(sizes, rates, counts, strict=True):
        if count == 0:
            raise DataError(
                f"the task {name!r} would never be trained on: its share of {rate:.3g} is less than one of the "
                f"{rows:,} rows of an epoch. Raise its weight, or leave the task out"
            )
    return Mixture(tuple(sizes), numbers, rates, counts)


def check_options(
    names: Sequence[str],
    *,
    strategy: Strategy,
    cap: int | None,
    temperature: float | None,
    weights: Mapping[str, float] | None,
) -> None:
    """Check `mix`'s options before the tasks' sizes are known.

    Raises:
        DataError: An option is missing or doesn't go with the strategy.
    """
    for option, value, goes_with in (
        ("cap", cap, ("proportional", "temperature")),
        ("temperature", temperature, ("temperature",)),
        ("weights", weights, ("explicit",)),
    ):
        if value is not None and strategy not in goes_with:
            raise DataError(f"{option} goes with the strategy {' or '.join(goes_with)}, not {strategy}")
    if strategy == "temperature" and temperature is None:
        raise DataError("the strategy temperature needs a temperature, such as 2")
    missing = [name for name in names if name not in (weights or {})]
    if strategy == "explicit" and missing:
        raise DataError(f"the strategy explicit needs a weight of every task; {missing[0]!r} has none")


def _part_of_order(name: str, size: int, seed: int, first: int, count: int) -> list[int]:
    """Part of a task's endless order: its rows shuffled, then all of them shuffled again, and so on."""
    rows: list[int] = []
    position = first
    while len(rows) < count:
        cycle, offset = divmod(position, size)
        taken = _order((seed, _number(name), cycle), size)[offset : offset + count - len(rows)]
        rows += taken
        position += len(taken)
    return rows


def _order(seed: tuple[int, ...], count: int) -> list[int]:
    """The numbers below `count`, shuffled."""
    import numpy as np  # here, as a mistake in a recipe is reported without it

    order: list[int] = np.random.default_rng(seed).permutation(count).tolist()
    return order


def _number(name: str) -> int:
    """A name as a seed, so that a task's order doesn't depend on the other tasks."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())


def _capped(sizes: Sequence[int], cap: int | None) -> list[int]:
    if not sizes:
        raise DataError("a mixture needs at least one task")
    if any(size < 1 for size in sizes):
        raise DataError(f"each task of a mixture needs at least one row; found {', '.join(map(str, sizes))}")
    if cap is not None and cap < 1:
        raise DataError(f"a mixture's cap is at least 1 row; found {cap}")
    return [size if cap is None else min(size, cap) for size in sizes]


def _shares(weights: Sequence[float]) -> tuple[float, ...]:
    if not weights:
        raise DataError("a mixture needs at least one task")
    total = math.fsum(weights)
    return tuple(weight / total for weight in weights)
