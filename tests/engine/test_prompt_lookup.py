"""Guesses are what a search for the last tokens finds, and the acceptance rule leaves every distribution as it is."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.random_cases import cases
from tests.reference.speculation import answers, guesses, outcomes

from manytune.engine.prompt_lookup import SIZES, HitRate, PromptLookup

TOKENS = st.integers(0, 2)


@settings(max_examples=cases(60), deadline=None)
@given(st.lists(TOKENS, min_size=1, max_size=20), st.lists(TOKENS, min_size=1, max_size=20))
def test_guesses_are_what_a_search_finds(prompt, answer):
    lookup = PromptLookup(prompt, 100, HitRate())
    tokens = list(prompt)
    for token, place in zip(answer, guesses(prompt, answer, SIZES), strict=True):
        lookup.add(token)
        tokens.append(token)
        assert bool(list(lookup.chances(1))) == (place is not None)
        if place is not None:
            loop = [tokens[place + ahead % (len(tokens) - place)] for ahead in range(9)]
            assert lookup.draft(9) == tuple(loop)


def test_no_more_is_guessed_than_fits_into_the_answer():
    lookup = PromptLookup([5, 6, 7, 8, 9, 5], 4, HitRate())
    lookup.add(6)
    assert len(list(lookup.chances(10))) == 2  # of three more tokens the last is read by no forward
    assert lookup.draft(2) == (7, 8)
    lookup.add(7)
    lookup.add(8)
    assert list(lookup.chances(10)) == []


def test_a_guess_is_the_likelier_the_more_often_such_guesses_were_right():
    of_all = HitRate()
    lookup = PromptLookup([1, 2, 3, 4] * 3, 100, HitRate(of_all))
    chances = []
    for token in [1, 2, 3, 4, 1, 2, 3]:
        lookup.add(token)
        chances.append(next(lookup.chances(1)))
    assert chances[0] < chances[1] < chances[2] < chances[3]
    # Six guesses were right: those after 4 to 7 matching tokens, and those after 8 and more, each of two estimates.
    assert of_all.share(4) == pytest.approx((4 + 4 * 0.5) / (4 + 4))
    assert of_all.share(9) == pytest.approx((2 + 4 * 0.5) / (2 + 4))
    assert of_all.share(2) == 0.5


def probabilities(*weights):
    return {token: Fraction(weight, sum(weights)) for token, weight in enumerate(weights)}


@pytest.mark.parametrize("draft", [0, 1, 2])
def test_drawing_and_comparing_is_the_acceptance_rule(draft):
    """The engine draws a token and goes on with the draft if it is the drafted one."""
    p = probabilities(5, 0, 3)
    drawn = {(token, token == draft): share for token, share in p.items() if share}
    assert outcomes(p, {draft: Fraction(1)}) == drawn


def test_every_answer_is_as_probable_as_without_a_draft():
    def next_token(answer):
        return probabilities(1 + len(answer), 2 + sum(answer), 3 + answer.count(2))

    expected = {(): Fraction(1)}
    for _ in range(3):
        expected = {
            (*answer, token): share * own
            for answer, share in expected.items()
            for token, own in next_token(answer).items()
        }
    assert answers(next_token, (2, 0, 1), 3) == answers(next_token, (), 3) == expected
