"""Batches of an epoch: every example once, seeded, by count or by tokens, with or without grouping."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.random_cases import cases
from tests.training.batches.tiny import Sequence, sequences

from manytune.errors import DataError, RecipeError
from manytune.training.batches import BUILDERS, builder, plan_batches, rows_of_one

examples = st.lists(sequences(), min_size=1, max_size=12)


def planned(items, **options):
    return plan_batches(rows_of_one(items), **options)


@given(examples, st.integers(1, 5), st.booleans(), st.integers(0, 3))
@settings(max_examples=cases(25), deadline=None)
def test_each_example_comes_exactly_once_an_epoch(items, size, grouped, epoch):
    plan = planned(items, seed=1, epoch=epoch, batch_size=size, group_prefixes=grouped)
    assert sorted(index for batch in plan for index in batch) == list(range(len(items)))
    assert sorted(map(len, plan))[1:] == [size] * (len(plan) - 1)


@pytest.mark.parametrize("layout", BUILDERS)
@given(examples, st.integers(16, 60), st.booleans())
@settings(max_examples=cases(25), deadline=None)
def test_a_token_budget_bounds_what_each_batch_computes(layout, items, budget, grouped):
    plan = planned(items, seed=1, token_budget=budget, layout=layout, group_prefixes=grouped)
    assert sorted(index for batch in plan for index in batch) == list(range(len(items)))
    for batch in plan:
        assert builder(layout)([items[i] for i in batch], pad_id=0).tokens_computed <= budget


@pytest.mark.parametrize("layout", BUILDERS)
@given(examples)
@settings(max_examples=cases(15), deadline=None)
def test_a_token_budget_is_filled(layout, items):
    budget = 40
    plan = planned(items, seed=1, token_budget=budget, layout=layout)
    for batch, following in pairwise(plan):
        one_more = [items[i] for i in (*batch, following[0])]
        assert builder(layout)(one_more, pad_id=0).tokens_computed > budget


def families(count, size):
    """`count` prompts of 20 tokens, each with `size` completions."""
    return [
        Sequence((7, *[family] * 19), (100 + member,)) for member in range(size) for family in range(count)
    ]


def test_grouping_puts_examples_with_the_same_prompt_together():
    items = families(10, 4)
    plan = planned(items, seed=0, batch_size=4, group_prefixes=True)
    assert all(len({items[i].prompt_ids for i in batch}) == 1 for batch in plan)


def test_grouping_computes_every_common_prefix_of_an_epoch_once_when_one_batch_holds_it():
    items = families(3, 3)
    (batch,) = planned(items, seed=0, batch_size=9, group_prefixes=True)
    assert builder("shared-prefix")([items[i] for i in batch], pad_id=0).tokens_computed == 1 + 3 * 19


@pytest.mark.parametrize("grouped", [False, True])
def test_the_seed_and_the_epoch_decide_the_order(grouped):
    items = families(10, 4)

    def plan(seed, epoch):
        return planned(items, seed=seed, epoch=epoch, batch_size=4, group_prefixes=grouped)

    assert plan(1, 2) == plan(1, 2)
    assert len({plan(1, 2), plan(1, 3), plan(2, 2), plan(2, 1)}) == 4


def test_grouped_batches_come_in_no_order_of_their_prefixes():
    items = families(30, 1)
    plan = planned(items, seed=0, batch_size=1, group_prefixes=True)
    firsts = [items[batch[0]].prompt_ids[1] for batch in plan]
    assert firsts not in (sorted(firsts), sorted(firsts, reverse=True))


def test_an_example_that_exceeds_the_budget_is_named():
    items = [Sequence((1,), (2,)), Sequence((1,) * 9, (2, 3), row=17)]
    with pytest.raises(DataError, match=r"rows.jsonl:17: the sequence has 10 input tokens.* budget .* is 9"):
        planned(items, seed=0, token_budget=9)


@pytest.mark.parametrize("sizes", [{}, {"batch_size": 2, "token_budget": 9}])
def test_exactly_one_size_is_needed(sizes):
    with pytest.raises(RecipeError, match="either a batch size or a token budget"):
        planned([Sequence((1,), (2,))], seed=0, **sizes)


@pytest.mark.parametrize("sizes", [{"batch_size": 0}, {"token_budget": -1}])
def test_sizes_have_to_be_positive(sizes):
    with pytest.raises(RecipeError, match=r"at least 1, found (0|-1)"):
        planned([Sequence((1,), (2,))], seed=0, **sizes)
