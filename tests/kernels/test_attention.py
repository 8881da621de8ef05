"""The attention kernel against attention one query at a time, in float64."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.kernels.machine import assert_near, needs_compiler
from tests.random_cases import cases
from tests.reference.one_sequence_a_forward import attention as one_at_a_time
from tests.training.batches.attention.test_packed import visible_rows
from tests.training.batches.tiny import Sequence, batches

from manytune.kernels import attention
from manytune.training.batches import builder
from manytune.training.batches.attention.kernel import attend

pytestmark = needs_compiler

NAMES = ("result", "gradient of query", "gradient of key", "gradient of value")
SCALING = 0.3
WINDOWS = (None, 1, 3, 40)

# How (rows, heads, dim) may lie in memory.
MEMORY = {
    "rows first": lambda x: x.contiguous(),
    "heads first": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "dim first": lambda x: x.permute(2, 0, 1).contiguous().permute(1, 2, 0),
    "part of wider rows": lambda x: torch.cat([x, 100 + x, x], dim=2)[..., : x.shape[2]],
}

# Several tiles of 36 queries, whole and cut ones; shared beginnings that end inside a tile and inside a vector of keys.
LONG = [
    Sequence(tuple(range(1000, 1041)), tuple(range(100, 170))),
    Sequence(tuple(range(1000, 1041)), tuple(range(200, 237))),
    Sequence(tuple(range(1000, 1041)), (*range(200, 219), *range(300, 375))),
    Sequence(tuple(range(400, 436)), (1,)),
    Sequence((1,), tuple(range(500, 573))),
    Sequence((7,), (8,)),
]


def operands(rows, heads, dim, *, seed=0):
    """Query, key, value and the result's gradient, each of shape (rows, heads, dim)."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(rows, count, dim, generator=generator)
        for count in (heads[0], heads[1], heads[1], heads[0])
    ]


def by_kernel(query, key, value, grad, layout, window, scaling=SCALING):
    """The result and the three gradients."""
    leaves = [x.detach().requires_grad_() for x in (query, key, value)]
    out = attend(*leaves, layout, scaling, window)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def by_definition(query, key, value, grad, visible, scaling=SCALING):
    leaves = [x.detach().double().requires_grad_() for x in (query, key, value)]
    out = one_at_a_time(*(x.transpose(0, 1) for x in leaves), visible, scaling=scaling)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.double())]


def assert_agrees(found, expected, **tolerance):
    for name, mine, theirs in zip(NAMES, found, expected, strict=True):
        assert mine.dtype == torch.float32
        assert_near(mine, theirs, name, **tolerance)


@given(
    batches(),
    st.sampled_from(WINDOWS),
    st.sampled_from([(4, 4), (4, 2), (3, 1), (9, 3)]),
    st.sampled_from([16, 32, 48, 64]),
    st.tuples(*[st.sampled_from(list(MEMORY))] * 4),
)
@example([Sequence((1,), (2,))], None, (3, 1), 16, ("rows first",) * 4)
@example([Sequence((1,), (2,)), Sequence((3,), (4,))], 1, (1, 1), 16, ("heads first",) * 4)
@settings(max_examples=cases(30), deadline=None)
def test_it_is_attention_along_each_rows_path(sequences, window, heads, dim, memory):
    batch = builder("shared-prefix")(sequences, pad_id=0)
    given = operands(batch.tokens_computed, heads, dim)
    laid = [MEMORY[kind](x) for kind, x in zip(memory, given, strict=True)]
    found = by_kernel(*laid, batch.layout, window)
    assert_agrees(found, by_definition(*given, visible_rows(sequences, batch, window)))


@pytest.mark.parametrize("layout", ["padding-free", "shared-prefix"])
@pytest.mark.parametrize("window", [*WINDOWS, 111])
def test_long_sequences_go_through_in_tiles(layout, window):
    sequences = LONG if layout == "shared-prefix" else LONG[2:]
    batch = builder(layout)(sequences, pad_id=0)
    given = operands(batch.tokens_computed, (2, 1), 32)
    visible = visible_rows(sequences, builder("shared-prefix")(sequences, pad_id=0), window)
    if layout == "padding-free":  # no two of these begin alike, so that only the rows' order differs
        tokens = [t for s in sequences for t in (s.prompt_ids + s.completion_ids)[:-1]]
        assert len(set(tokens)) == len(tokens) == batch.tokens_computed
        visible = own_rows(batch, window)
    assert max(map(len, visible)) == min(window or 134, 134)
    assert_agrees(by_kernel(*given, batch.layout, window), by_definition(*given, visible))


def own_rows(batch, window):
    """For each row of a batch without shared rows, the rows before it in its own sequence."""
    starts = (batch.position_ids[0] == 0).nonzero().flatten().tolist()
    first = [max(s for s in starts if s <= row) for row in range(batch.tokens_computed)]
    return [list(range(start, row + 1))[-(window or row + 1) :] for row, start in enumerate(first)]


def test_the_same_inputs_give_the_same_bits_with_any_number_of_threads(request):
    batch = builder("shared-prefix")(LONG, pad_id=0)
    given = operands(batch.tokens_computed, (4, 2), 32)
    expected = by_kernel(*given, batch.layout, 40)
    repeated = by_kernel(*given, batch.layout, 40)
    request.getfixturevalue("two_threads")
    parallel = by_kernel(*given, batch.layout, 40)
    for name, one, again, two in zip(NAMES, expected, repeated, parallel, strict=True):
        assert torch.equal(one, again) and torch.equal(one, two), name


@pytest.mark.parametrize("window", [None, 3])
def test_a_key_that_is_not_a_number_spoils_what_sees_it_and_nothing_else(window):
    batch = builder("shared-prefix")(LONG, pad_id=0)
    query, key, value, grad = operands(batch.tokens_computed, (4, 2), 16)
    clean, *_ = by_kernel(query, key, value, grad, batch.layout, window)
    visible = visible_rows(LONG, batch, window)
    for row in (0, 40, batch.tokens_computed - 1):
        spoiled = key.clone()
        spoiled[row, 1] = float("nan")
        found, *_ = by_kernel(query, spoiled, value, grad, batch.layout, window)
        seen = torch.tensor([row in rows for rows in visible])
        assert 0 < seen.sum() < len(seen)
        assert found[seen, 2:].isnan().all()
        assert torch.equal(found[~seen], clean[~seen]) and torch.equal(found[:, :2], clean[:, :2])


def test_scores_that_are_ten_thousand_apart_neither_overflow_nor_vanish():
    batch = builder("shared-prefix")(LONG, pad_id=0)
    rows, window = batch.tokens_computed, 40
    generator = torch.Generator().manual_seed(0)
    _, _, value, grad = operands(rows, (2, 1), 16)
    query, key = torch.zeros(rows, 2, 16), torch.zeros(rows, 1, 16)
    # Whole numbers, so that float32 has the scores exactly: -10,000, 0 or 10,000, and up to 4 more or less.
    query[..., 0] = 100.0
    key[..., 0] = 100.0 * torch.randint(-1, 2, (rows, 1), generator=generator)
    query[..., 1], key[..., 1] = 2.0, torch.randint(-2, 3, (rows, 1), generator=generator).float()
    found = by_kernel(query, key, value, grad, batch.layout, window, scaling=1.0)
    expected = by_definition(query, key, value, grad, visible_rows(LONG, batch, window), scaling=1.0)
    assert_near(found[0], expected[0], "result")
    # The backward pass reads the logarithm of the sum in float32, whose last place is 0.001 of such a score.
    assert_agrees(found, expected, tolerance=2e-3)


def test_what_it_takes():
    x = torch.zeros(3, 2, 32)
    assert attention.suits(x, x[:, :1], x[:, :1])
    assert attention.suits(x.transpose(0, 1), x, x)
    for other in (x.double(), x.bfloat16(), x[..., :16], x.to("meta")):
        assert not attention.suits(other, x, x)
        assert not attention.suits(x, other, x)
        assert not attention.suits(x, x, other)
    assert not attention.suits(*[x[..., :24]] * 3)
