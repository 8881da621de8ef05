"""Sampling among allowed tokens is sampling from logits in which the others are minus infinity."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.random_cases import cases
from tests.reference.sampling import probabilities

from manytune.engine.request import SamplingParams
from manytune.engine.sampling import Sampler, sample_tokens

VOCABULARY = 40
PROMPT = (3, 4, 5)


@given(
    seed=st.integers(0, 10**6),
    options=st.fixed_dictionaries(
        {"temperature": st.sampled_from([0.3, 1.0, 2.0])},
        optional={
            "top_k": st.integers(1, 50),
            "top_p": st.sampled_from([0.1, 0.5, 0.9]),
            "min_p": st.sampled_from([0.05, 0.5]),
            "repetition_penalty": st.sampled_from([0.5, 1.5]),
            "presence_penalty": st.just(1.0),
            "logit_bias": st.just({4: 30.0, 5: -30.0}),
        },
    ),
)
@settings(max_examples=cases(15), deadline=None)
def test_the_distribution_is_the_references_over_masked_logits(seed: int, options: dict) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(VOCABULARY, generator=generator)
    allowed = torch.rand(VOCABULARY, generator=generator) < 0.3
    allowed[torch.randint(0, VOCABULARY, (1,), generator=generator)] = True
    params = SamplingParams(**options)
    expected = probabilities(params, logits.masked_fill(~allowed, -math.inf), PROMPT, ())
    draws = 300
    counts = torch.zeros(VOCABULARY)
    for draw in range(draws):
        token, _ = Sampler(SamplingParams(**options, seed=draw), PROMPT).sample(logits, allowed)
        assert allowed[token]
        counts[token] += 1
    assert not counts[expected == 0].any()
    spread = (expected * (1 - expected) / draws).sqrt()
    assert ((counts / draws - expected).abs() <= 6 * spread + 0.01).all()


def test_rows_with_and_without_a_mask_are_sampled_together() -> None:
    logits = torch.randn(4, VOCABULARY, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(VOCABULARY, dtype=torch.bool)
    mask[[7, 9]] = True
    params = [
        SamplingParams(),
        SamplingParams(),
        SamplingParams(temperature=1.0, seed=1),
        SamplingParams(logprobs=1),
    ]
    samplers = [Sampler(one, PROMPT) for one in params]
    before = logits.clone()
    found = sample_tokens(logits, samplers, [None, mask, mask, mask])
    assert torch.equal(logits, before)
    best = 7 if logits[1, 7] > logits[1, 9] else 9
    assert found[0] == (int(logits[0].argmax()), None) and found[1] == (best, None)
    assert found[2] is not None and found[2][0] in (7, 9)
    assert found[3] is not None and found[3][1] is not None
    assert found[3][1].logprob == pytest.approx(float(logits[3].log_softmax(0)[found[3][0]]), abs=1e-5)


def test_logits_that_are_not_finite_fail_whatever_is_allowed() -> None:
    logits = torch.zeros(1, VOCABULARY)
    logits[0, 3] = math.nan
    mask = torch.zeros(VOCABULARY, dtype=torch.bool)
    mask[7] = True
    assert sample_tokens(logits, [Sampler(SamplingParams(), PROMPT)], [mask]) == [None]
