"""Prefixes are found by the same tenant, adapter and tokens only, and the least recently used are evicted."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.random_cases import cases

from manytune.engine.prefix_cache import BLOCK, PrefixCache, block_keys

PROMPT = tuple(range(3 * BLOCK + 5))


def numbers(prompt, virtual_tokens=0):
    """Values that say which tokens they stand for: -1 for what is before the prompt."""
    row = torch.tensor([-1.0] * virtual_tokens + [float(token) for token in prompt])
    return lambda tokens: row[:tokens].view(1, 1, 1, -1, 1).clone()


def find(cache, tenant, adapter, prompt):
    return cache.find(block_keys(tenant, adapter, prompt[:-1]))


def store(cache, tenant, adapter, prompt, virtual_tokens=0):
    cache.store(
        block_keys(tenant, adapter, prompt),
        virtual_tokens=virtual_tokens,
        read=numbers(prompt, virtual_tokens),
    )


def stored(prompt=PROMPT, *, tenant="t", adapter="a", budget=1000, virtual_tokens=0):
    cache = PrefixCache(budget)
    store(cache, tenant, adapter, prompt, virtual_tokens)
    return cache


def test_the_longest_common_prefix_is_found_in_whole_blocks():
    cache = stored(virtual_tokens=2)
    tokens, values = find(cache, "t", "a", (*PROMPT[: 2 * BLOCK + 3], 999, 998))
    assert tokens == 2 * BLOCK
    assert values.flatten().tolist() == [-1.0, -1.0, *PROMPT[: 2 * BLOCK]]


def test_only_blocks_that_may_be_taken_are_found():
    cache = stored(PROMPT[: 2 * BLOCK])
    assert find(cache, "t", "a", PROMPT[: 2 * BLOCK])[0] == BLOCK
    assert find(cache, "t", "a", PROMPT[: 2 * BLOCK + 1])[0] == 2 * BLOCK


def test_another_tenant_adapter_or_token_finds_nothing():
    cache = stored()
    assert find(cache, "t", "a", PROMPT) is not None
    assert find(cache, "other", "a", PROMPT) is None
    assert find(cache, "t", "b", PROMPT) is None
    assert find(cache, "t", None, PROMPT) is None
    assert find(cache, "t", "a", (7, *PROMPT[1:])) is None


def test_the_least_recently_used_are_evicted():
    cache = PrefixCache(2 * BLOCK)
    one, two, three = (tuple(range(start, start + BLOCK)) for start in (0, 100, 200))
    for prompt in (one, two):
        store(cache, "t", None, prompt)
    assert find(cache, "t", None, (*one, 1)) is not None
    store(cache, "t", None, three)
    assert find(cache, "t", None, (*two, 1)) is None
    assert find(cache, "t", None, (*one, 1)) is not None and find(cache, "t", None, (*three, 1)) is not None


def test_nothing_is_kept_without_a_budget():
    assert len(stored(budget=0)) == 0


@settings(max_examples=cases(30), deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("tu"), st.lists(st.integers(0, 1), min_size=1, max_size=5)), max_size=20
    ),
    st.integers(0, 8),
)
def test_what_is_found_is_what_was_stored_and_the_bookkeeping_stays_consistent(prompts, blocks):
    cache = PrefixCache(blocks * BLOCK)
    for tenant, kinds in prompts:
        prompt = tuple(kind * 1000 + place for kind in kinds for place in range(BLOCK))
        found = find(cache, tenant, "a", (*prompt, 5))
        if found is not None:
            assert found[1].flatten().tolist() == list(prompt[: found[0]])
        store(cache, tenant, "a", prompt)
        cache.check_integrity()
        if len(prompt) <= blocks * BLOCK:
            assert find(cache, tenant, "a", (*prompt, 5))[0] == len(prompt)
