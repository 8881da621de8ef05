"""Which requests can never run: unknown tokens, more positions than the model has, more tokens than the cache has."""

import pytest

from manytune.engine.limits import RequestLimits
from manytune.engine.request import Request, SamplingParams
from manytune.errors import ContextLengthError, RequestError

LIMITS = RequestLimits(vocabulary=48, positions=100, kv_budget_tokens=640)


def asked(prompt, new, **options):
    return Request("a", tuple(prompt), SamplingParams(max_new_tokens=new, **options))


def test_virtual_tokens_prompt_and_answer_count():
    assert LIMITS.max_tokens(asked(range(10), 20), virtual_tokens=3) == 33


@pytest.mark.parametrize(("prompt", "new", "virtual"), [(40, 60, 0), (40, 57, 3), (99, 1, 0)])
def test_a_request_may_fill_the_models_positions(prompt, new, virtual):
    assert LIMITS.max_tokens(asked([5] * prompt, new), virtual_tokens=virtual) == 100
    with pytest.raises(
        ContextLengthError,
        match=f"'a' has {prompt + virtual} tokens and {new + 1} to generate, but the model has 100 positions",
    ):
        LIMITS.max_tokens(asked([5] * prompt, new + 1), virtual_tokens=virtual)


@pytest.mark.parametrize(("budget", "fits"), [(64, True), (63, False)])
def test_a_whole_row_must_fit_into_the_cache(budget, fits):
    limits = RequestLimits(vocabulary=48, positions=None, kv_budget_tokens=budget)
    if fits:
        assert limits.max_tokens(asked([5] * 5, 8), virtual_tokens=0) == 13
    else:
        with pytest.raises(ContextLengthError, match="up to 13 tokens of the KV cache, which has 63"):
            limits.max_tokens(asked([5] * 5, 8), virtual_tokens=0)


def test_a_model_without_a_limit_takes_what_the_cache_holds():
    limits = RequestLimits(vocabulary=48, positions=None, kv_budget_tokens=6400)
    assert limits.max_tokens(asked([5], 5000), virtual_tokens=0) == 5001


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (asked([1, 48], 2), "'a': prompt_ids contains token 48, and the model has 48 tokens"),
        (asked([-1], 2), "'a': prompt_ids contains token -1"),
        (asked([1], 2, logit_bias={-1: 1.0}), "'a': logit_bias contains token -1"),
    ],
)
def test_tokens_that_the_model_does_not_know_are_refused(request_, message):
    with pytest.raises(RequestError, match=message) as raised:
        LIMITS.max_tokens(request_, virtual_tokens=0)
    assert not isinstance(raised.value, ContextLengthError)
