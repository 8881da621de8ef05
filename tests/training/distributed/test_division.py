from __future__ import annotations

import itertools
import random

import pytest
from tests.training.distributed.trainings import rows
from torch.utils.data import BatchSampler

from manytune.training.batches.grouping import computed_tokens, rows_of_one
from manytune.training.distributed.division import DividedBatches, deal, divide, passes_of
from manytune.training.loop.samplers import SeededSampler

ROWS = rows_of_one(rows(9))


@pytest.mark.parametrize("layout", ["shared-prefix", "padding-free", "padded"])
@pytest.mark.parametrize("parts", [2, 3])
def test_a_batch_is_divided_so_that_the_largest_part_is_as_small_as_any_cut_of_its_order(
    layout: str, parts: int
) -> None:
    divided = divide(ROWS, parts, layout=layout)
    assert len(divided) == parts
    order = [index for part in divided for index in part]
    assert sorted(order) == list(range(9))
    largest = max(computed_tokens([ROWS[index] for index in part], layout) for part in divided if part)
    for cuts in itertools.combinations(range(1, 9), parts - 1):
        bounds = itertools.pairwise((0, *cuts, 9))
        costs = [computed_tokens([ROWS[index] for index in order[a:b]], layout) for a, b in bounds]
        assert largest <= max(costs)


def test_rows_with_a_common_prefix_go_to_one_process() -> None:
    alike = rows_of_one(rows(6))  # two groups of three, with 8 tokens in common
    first, second = divide(alike, 2, layout="shared-prefix")
    assert {tuple(sorted(first)), tuple(sorted(second))} == {(0, 1, 2), (3, 4, 5)}


def test_with_fewer_rows_than_processes_some_have_none() -> None:
    assert sorted(map(len, divide(ROWS[:1], 3, layout="padded"))) == [0, 0, 1]


def test_whole_batches_are_dealt_evenly_in_number_and_nearly_in_tokens() -> None:
    draw = random.Random(0)
    for _ in range(50):
        costs = [draw.randint(1, 100) for _ in range(6)]
        dealt = deal(costs, 2)
        assert list(map(len, dealt)) == [3, 3]
        assert sorted(dealt[0] + dealt[1]) == list(range(6))
        best = min(
            max(sum(costs[i] for i in chosen), sum(costs) - sum(costs[i] for i in chosen))
            for chosen in itertools.combinations(range(6), 3)
        )
        assert max(sum(costs[i] for i in part) for part in dealt) <= best * 4 / 3


@pytest.mark.parametrize("processes", [2, 3, 4])
@pytest.mark.parametrize("accumulation", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("count", [1, 7, 12, 13])
def test_every_step_has_its_rows_and_as_many_passes_in_each_process(
    processes: int, accumulation: int, count: int
) -> None:
    some = rows_of_one(rows(count))
    whole = list(BatchSampler(SeededSampler(count, 0), 2, drop_last=False))
    passes = passes_of(accumulation, processes)
    parts = []
    for rank in range(processes):
        own = DividedBatches(
            BatchSampler(SeededSampler(count, 0), 2, drop_last=False),
            some,
            accumulation=accumulation,
            layout="shared-prefix",
            rank=rank,
            processes=processes,
        )
        parts.append(list(own))
        assert len(parts[-1]) == len(own)
    steps = -(-len(whole) // accumulation)
    assert -(-len(parts[0]) // passes) == steps  # what transformers takes for the steps of an epoch
    for step in range(steps):
        expected = [row for batch in whole[step * accumulation : (step + 1) * accumulation] for row in batch]
        found = [
            row for part in parts for batch in part[step * passes : (step + 1) * passes] for row in batch
        ]
        assert sorted(found) == sorted(expected)
