"""In which order an epoch's rows come."""

from __future__ import annotations

import torch

from manytune.data.encoding.encoded import Encoded
from manytune.training.batches.grouping import plan_batches, rows_of_one
from manytune.training.loop.samplers import GroupedSampler, SeededSampler


def test_the_order_of_rows_depends_on_seed_and_epoch_alone() -> None:
    order = SeededSampler(100, seed=3)
    first = list(order)
    assert sorted(first) == list(range(100))
    assert list(order) == first
    order.set_epoch(1)
    assert list(order) != first
    order.set_epoch(0)
    torch.rand(5)
    assert list(order) == first
    assert list(SeededSampler(100, seed=4)) != first


def test_rows_that_begin_alike_fall_into_the_same_batch_and_each_comes_once_an_epoch() -> None:
    documents = [tuple(range(10 * n, 10 * n + 8)) for n in range(20)]
    rows = [Encoded((*document, 500 + q), (1,), "x", 1) for q in range(3) for document in documents]
    order = GroupedSampler([(row,) for row in rows], batch_size=3, seed=3)
    orders = []
    for epoch in (0, 1):
        order.set_epoch(epoch)
        orders.append(list(order))
        assert sorted(orders[-1]) == list(range(60))
        for start in range(0, 60, 3):
            assert len({rows[index].prompt_ids[:8] for index in orders[-1][start : start + 3]}) == 1
    assert orders[0] != orders[1]
    assert list(GroupedSampler([(row,) for row in rows], batch_size=3, seed=3)) == orders[0]


def test_a_grouped_epochs_smaller_batch_comes_last() -> None:
    """The loader cuts the order into threes; only a batch of two at the end leaves the planned batches whole."""
    rows = [Encoded((n // 3, 9, n), (1,), "x", 1) for n in range(8)]
    planned = plan_batches(rows_of_one(rows), seed=0, epoch=0, batch_size=3, group_prefixes=True)
    order = list(GroupedSampler([(row,) for row in rows], batch_size=3, seed=0))
    assert {tuple(order[:3]), tuple(order[3:6]), tuple(order[6:])} == set(planned)
