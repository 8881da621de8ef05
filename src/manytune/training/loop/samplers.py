"""In which order an epoch's rows come: a function of the seed and the epoch, so that any epoch can be entered again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from manytune.data.encoding.encoded import Encoded
from manytune.data.mixing import Mixture
from manytune.training.batches.grouping import BatchPlan, plan_batches


class SeededSampler(Sampler[int]):
    """A permutation of the rows that depends on the seed and the epoch alone."""

    def __init__(self, length: int, seed: int) -> None:
        self.length = length
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; the training loop calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        return iter(np.random.default_rng([self.seed, self.epoch]).permutation(self.length).tolist())


class MixtureSampler(SeededSampler):
    """The rows that an epoch of a mixture of tasks holds, in an order that the seed and the epoch decide."""

    def __init__(self, mixture: Mixture, seed: int) -> None:
        super().__init__(mixture.rows_per_epoch, seed)
        self._mixture = mixture

    def __iter__(self) -> Iterator[int]:
        return iter(self._mixture.epoch(self.seed, self.epoch))


class GroupedSampler(SeededSampler):
    """Puts rows with long common prefixes into the same batch; the batches come at random.

    Args:
        rows: The sequences of each row; the first one decides where a row goes.
        batch_size: Rows of a batch. An epoch's smaller batch, if there is one, comes last.
        seed: Decides the order, with the epoch.
        mixture: Decides which rows an epoch holds; None for all.
    """

    def __init__(
        self, rows: Sequence[Sequence[Encoded]], *, batch_size: int, seed: int, mixture: Mixture | None = None
    ) -> None:
        super().__init__(mixture.rows_per_epoch if mixture else len(rows), seed)
        self._rows = rows
        self._batch_size = batch_size
        self._mixture = mixture

    def __iter__(self) -> Iterator[int]:
        rows = self._mixture.epoch(self.seed, self.epoch) if self._mixture else range(len(self._rows))
        batches = plan_batches(
            [self._rows[row] for row in rows],
            seed=self.seed,
            epoch=self.epoch,
            batch_size=self._batch_size,
            group_prefixes=True,
        )
        return iter([rows[place] for batch in sorted(batches, key=len, reverse=True) for place in batch])


class LengthSampler(SeededSampler):
    """Puts rows of similar lengths into the same batch; the batches come in random order.

    A row's length counts as up to a quarter more or less than it is, so that it meets other rows in every epoch.

    Args:
        rows: The sequences of each row.
        batch_size: Rows of a batch. An epoch's smaller batch, if there is one, comes last.
        seed: Decides the order, with the epoch.
    """

    def __init__(self, rows: Sequence[Sequence[Encoded]], *, batch_size: int, seed: int) -> None:
        super().__init__(len(rows), seed)
        self._lengths = np.array([sum(len(sequence.input_ids) for sequence in row) for row in rows])
        self._batch_size = batch_size

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng([self.seed, self.epoch])
        order = np.argsort(self._lengths * generator.uniform(0.8, 1.25, len(self._lengths)), kind="stable")
        whole = len(order) // self._batch_size * self._batch_size
        # A batch with fewer rows is made of rows from all over, and not of the longest.
        rest = generator.choice(len(order), len(order) - whole, replace=False)
        batches = np.delete(order, rest).reshape(-1, self._batch_size)
        return iter([*batches[generator.permutation(len(batches))].flatten().tolist(), *order[rest].tolist()])


class PlannedBatchSampler(Sampler[list[int]]):
    """Batches that were planned before, in their order."""

    def __init__(self, plan: BatchPlan) -> None:
        self._plan = plan

    def __len__(self) -> int:
        return len(self._plan)

    def __iter__(self) -> Iterator[list[int]]:
        return map(list, self._plan)


def row_sampler(
    rows: Sequence[Sequence[Encoded]],
    *,
    batch_size: int,
    seed: int,
    group_prefixes: bool,
    mixture: Mixture | None,
    by_length: bool = False,
) -> SeededSampler:
    """The sampler that a recipe asks for, or `LengthSampler`; the arguments are `GroupedSampler`'s and the recipe's."""
    if by_length:
        return LengthSampler(rows, batch_size=batch_size, seed=seed)
    if group_prefixes:
        return GroupedSampler(rows, batch_size=batch_size, seed=seed, mixture=mixture)
    return SeededSampler(len(rows), seed) if mixture is None else MixtureSampler(mixture, seed)
