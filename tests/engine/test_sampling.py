"""Draws come from the distribution that transformers' own processors give, and depend on the seed alone."""

import math
from collections import Counter

import pytest
import torch
from tests.reference.sampling import probabilities

from manytune.engine.request import SamplingParams
from manytune.engine.sampling import Sampler, sample_tokens
from manytune.errors import RequestError

VOCABULARY = 20
PROMPT = (1, 2, 3, 3)
ANSWER = [4, 5, 4, 2]

CASES = {
    "temperature": {"temperature": 0.7},
    "top-k": {"temperature": 1.0, "top_k": 4},
    "top-k above the vocabulary": {"temperature": 1.0, "top_k": 99},
    "top-p": {"temperature": 1.3, "top_p": 0.6},
    "min-p": {"temperature": 1.0, "min_p": 0.2},
    "all of these": {"temperature": 2.0, "top_k": 9, "top_p": 0.9, "min_p": 0.1},
    "repetition penalty": {"temperature": 1.0, "repetition_penalty": 1.7},
    "presence and frequency": {"temperature": 1.0, "presence_penalty": 0.8, "frequency_penalty": -0.5},
    "bias": {"temperature": 1.0, "logit_bias": {3: 2.0, 7: -50.0}},
}


def logits(seed=0):
    return 2 * torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed))


def after(params, answer):
    """A sampler that has chosen these tokens."""
    sampler = Sampler(params, PROMPT)
    for token in answer:
        forced = torch.full((VOCABULARY,), -1e9)
        forced[token] = 1e9
        assert sampler.sample(forced)[0] == token
    return sampler


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_draws_follow_transformers_processors(options):
    params = SamplingParams(seed=5, **options)
    expected = probabilities(params, logits(), PROMPT, [])
    draws = 4000
    counts = Counter(
        Sampler(SamplingParams(seed=seed, **options), PROMPT).sample(logits())[0] for seed in range(draws)
    )
    for token in range(VOCABULARY):
        share = float(expected[token])
        assert abs(counts[token] / draws - share) <= 5 * (share * (1 - share) / draws) ** 0.5 + 5 / draws


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.7},
        {"presence_penalty": 3.0},
        {"frequency_penalty": 2.0},
        {"logit_bias": {9: 30.0}},
        {
            "repetition_penalty": 0.5,
            "presence_penalty": -1.0,
            "frequency_penalty": 0.3,
            "logit_bias": {2: 1.0},
        },
    ],
)
@pytest.mark.parametrize("seed", range(6))
def test_greedy_takes_the_likeliest_after_penalties(options, seed):
    sampler = after(SamplingParams(**options), ANSWER)
    warm = SamplingParams(temperature=1.0, **options)
    expected = probabilities(warm, logits(seed), PROMPT, ANSWER).argmax()
    assert sampler.sample(logits(seed))[0] == expected


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 5e-324},
        {"temperature": 1e-40},
        {"temperature": 1e-3, "top_p": 0.5},
        {"temperature": 1.0, "top_p": 5e-324},
        {"temperature": 1.0, "repetition_penalty": 1e-179},
        {"temperature": 1.0, "repetition_penalty": 1e300, "top_k": 3},
        {"temperature": 1e300, "min_p": 0.5},
        {"temperature": 0.5, "frequency_penalty": -1e300},
        {"temperature": 1e-5, "logit_bias": {3: 100.0}, "repetition_penalty": 0.1},
    ],
)
@pytest.mark.parametrize("largest", [1.0, 3e38])
def test_numbers_beyond_all_measure_still_choose_a_token_that_can_be(options, largest):
    logits = torch.tensor([-math.inf, -largest, 0.0, largest, largest / 2, -math.inf])
    sampler = Sampler(SamplingParams(logprobs=6, seed=0, **options), [2, 3, 0])
    for _ in range(4):
        token, logprobs = sampler.sample(logits)
        assert 0 < token < 5
        assert all(-9999 <= logprob <= 0 for _, logprob in logprobs.top)
        if options["temperature"] < 1e-30:
            assert token == 3


def test_a_seed_settles_the_draws():
    params = SamplingParams(temperature=1.5, seed=3)
    rows = [logits(seed) for seed in range(12)]
    one, other = Sampler(params, PROMPT), Sampler(params, PROMPT)
    assert [one.sample(row) for row in rows] == [other.sample(row) for row in rows]
    third = Sampler(SamplingParams(temperature=1.5, seed=4), PROMPT)
    assert [one.sample(row) for row in rows] != [third.sample(row) for row in rows]


def test_logprobs_are_the_models_own():
    params = SamplingParams(logprobs=3, logit_bias={0: 100.0})
    token, found = Sampler(params, PROMPT).sample(logits())
    expected = logits().log_softmax(0)
    assert token == 0 and found.token_id == 0
    assert found.logprob == pytest.approx(float(expected[0]))
    assert [one for one, _ in found.top] == expected.topk(3).indices.tolist()
    assert [value for _, value in found.top] == pytest.approx(expected.topk(3).values.tolist())


def test_top_p_looks_as_far_as_it_must():
    flat = torch.zeros(5000)
    params = SamplingParams(temperature=1.0, top_p=0.9, seed=0)
    sampler = Sampler(params, PROMPT)
    assert len({sampler.sample(flat)[0] for _ in range(600)}) > 500


def test_a_batch_chooses_as_its_rows_do():
    settings = [SamplingParams(), SamplingParams(temperature=1.0, seed=1), SamplingParams(logprobs=2)]
    rows = torch.stack([logits(seed) for seed in range(3)])
    together = sample_tokens(rows, [Sampler(one, PROMPT) for one in settings])
    assert together == [Sampler(one, PROMPT).sample(row) for one, row in zip(settings, rows, strict=True)]


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("max_new_tokens", 0, "at least 1"),
        ("temperature", -0.1, "0 or a positive number"),
        ("temperature", float("nan"), "0 or a positive number"),
        ("top_k", 0, "at least 1, or None"),
        ("top_p", 0.0, "above 0 and at most 1"),
        ("min_p", 1.5, "from 0 to 1"),
        ("repetition_penalty", 0.0, "a positive number"),
        ("presence_penalty", float("inf"), "a finite number"),
        ("stop", "word", "a tuple of strings"),
        ("stop", ("",), "a tuple of strings that aren't empty"),
        ("logprobs", -1, "0 or more, or None"),
    ],
)
def test_values_out_of_range_are_refused_by_name(option, value, expected):
    with pytest.raises(RequestError, match=rf"^{option}=.*expected {expected}"):
        SamplingParams(**{option: value})
