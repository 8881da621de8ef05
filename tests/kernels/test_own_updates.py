"""The kernel for rows that have an adapter each, against separate operations in float64."""

import pytest
import torch
from tests.kernels.machine import assert_near, needs_compiler

from manytune.kernels import own_updates
from manytune.kernels.own_updates import Blocks, own_weights

pytestmark = needs_compiler

SIZES = [(16, 16), (21, 50), (64, 1), (1, 70), (576, 192), (48, 1536)]


def drawn(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def by_definition(x, y, order, ends, downs, ups, scalings):
    """y with each block's update added, in float64."""
    y, start = y.double(), 0
    for end, down, up, scaling in zip(ends, downs, ups, scalings, strict=True):
        rows = order[start:end]
        if down is not None:
            y[rows] += scaling * x[rows].double() @ down.double().T @ up.double().T
        start = end
    return y


@pytest.mark.parametrize("rank", [1, 2, 3, 4, 8, 12, 16, 31, 32, 64])
@pytest.mark.parametrize("counts", [(1, 1, 1), (4, 0, 7), (16, 17, 40)], ids=str)
def test_each_row_gets_its_own_adapters_update(library, rank, counts):
    rows = sum(counts) + 2  # two without an adapter
    for width, out in SIZES:
        downs = drawn(*[(rank, width)] * 3, seed=1)
        ups = drawn(*[(out, rank)] * 3, seed=2)
        x, y = drawn((rows, width), (rows, out), seed=3)
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(4))[:-2]
        ends = torch.tensor(counts).cumsum(0)
        scalings = [0.5, 1.0, -2.0]
        expected = by_definition(x, y, order, ends.tolist(), downs, ups, scalings)
        own_updates.add(library, x, y, Blocks(order, ends), own_weights(downs, ups, scalings))
        assert_near(y, expected, f"{width} x {out}")


def test_adapters_may_have_other_ranks_or_no_update(library):
    downs = [*drawn((8, 40)), None, *drawn((3, 40), seed=5)]
    ups = [*drawn((50, 8), seed=6), None, *drawn((50, 3), seed=7)]
    x, y = drawn((6, 40), (6, 50), seed=8)
    order, ends = torch.arange(6), torch.tensor([2, 4, 6])
    expected = by_definition(x, y, order, ends.tolist(), downs, ups, [1.0, 0.0, 1.0])
    own_updates.add(library, x, y, Blocks(order, ends), own_weights(downs, ups, [1.0, 0.0, 1.0]))
    assert_near(y, expected)


def test_rows_may_be_apart_as_columns_of_a_wider_product_are(library):
    (down,), (up,), (wide_x, wide_y) = drawn((4, 30)), drawn((20, 4)), drawn((5, 40), (5, 60), seed=9)
    x, y, untouched = wide_x[:, 7:37], wide_y[:, 13:33], wide_y.clone()
    expected = by_definition(x, y, torch.arange(5), [5], [down], [up], [1.0])
    own_updates.add(
        library, x, y, Blocks(torch.arange(5), torch.tensor([5])), own_weights([down], [up], [1.0])
    )
    assert_near(y, expected)
    assert torch.equal(wide_y[:, :13], untouched[:, :13]) and torch.equal(wide_y[:, 33:], untouched[:, 33:])


def test_a_rows_result_does_not_depend_on_the_others(library, two_threads):
    (down,), (up,), (x,) = drawn((8, 100)), drawn((90, 8)), drawn((21, 100), seed=3)
    weights = own_weights([down], [up], [1.0])
    together = torch.zeros(21, 90)
    own_updates.add(library, x, together, Blocks(torch.arange(21), torch.tensor([21])), weights)
    for row in range(21):
        alone = torch.zeros(1, 90)
        own_updates.add(
            library, x[row : row + 1], alone, Blocks(torch.tensor([0]), torch.tensor([1])), weights
        )
        assert torch.equal(alone[0], together[row])


def test_what_it_does_not_take_is_known():
    down, up = torch.zeros(8, 16), torch.zeros(32, 8)
    assert own_updates.suits(down, up)
    for other in (
        (down.double(), up),
        (down.bfloat16(), up.bfloat16()),
        (down, up.T.contiguous().T),
        (torch.zeros(16, 8).T, up),
        (torch.zeros(65, 16), torch.zeros(32, 65)),
        (torch.zeros(0, 16), torch.zeros(32, 0)),
        (down.to("meta"), up.to("meta")),
    ):
        assert not own_updates.suits(*other)
