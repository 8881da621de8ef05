"""Drafts are made where they pay, by the engine's own measurements."""

import random

import pytest
from tests.engine.drafting import Clock

from manytune.engine.draft_gains import DraftGains
from manytune.engine.prompt_lookup import HitRate, PromptLookup
from manytune.engine.speculation import MOST_OF_REQUEST, MOST_OF_STEP, Speculation

PATTERN = (3, 4, 5, 6, 7, 8)


@pytest.fixture
def clock(monkeypatch) -> Clock:
    return Clock(monkeypatch)


class Decoding:
    """Requests whose answers are given, decoded by an engine's speculation.

    Args:
        seconds: How long a step takes, of the number of its tokens.
    """

    def __init__(self, clock, seconds, answers, prompt=PATTERN):
        self.clock, self.seconds = clock, seconds
        self.speculation = Speculation(is_on=True)
        self.left = [list(answer) for answer in answers]
        self.lookups = [self.speculation.lookup(prompt, len(answer)) for answer in answers]
        self.drafted: list[int] = []

    def run(self, steps):
        for _ in range(steps):
            self.speculation.begin_step()
            drafts = self.speculation.drafts(self.lookups)
            accepted = sum(self._choose(*one) for one in zip(self.lookups, self.left, drafts, strict=True))
            read = sum(map(len, drafts))
            self.clock.now += self.seconds(len(drafts) + read)
            self.speculation.end_step(len(drafts), read, accepted)
            self.drafted.append(read)
        return self

    @staticmethod
    def _choose(lookup, left, draft):
        for place in range(len(draft) + 1):
            token = left.pop(0)
            lookup.add(token)
            if place == len(draft) or draft[place] != token:
                return place
        raise AssertionError


def repeating(count=100_000):
    return list(PATTERN) * (count // len(PATTERN))


def test_long_drafts_are_made_where_further_tokens_cost_nothing(clock):
    found = Decoding(clock, lambda tokens: 1.0, [repeating()]).run(60)
    assert found.drafted[-1] == MOST_OF_REQUEST
    assert found.speculation.accepted == found.speculation.drafted > 300


def test_drafts_end_where_a_step_takes_as_long_as_its_tokens(clock):
    found = Decoding(clock, lambda tokens: float(tokens), [repeating()] * 4).run(1000)
    steps = sum(drafted > 0 for drafted in found.drafted)
    assert 5 <= steps <= 21  # five to measure, and two to measure again after 8, 16, 32 and up to 200 steps


def test_drafts_begin_when_they_have_become_cheap(clock):
    found = Decoding(clock, lambda tokens: float(tokens), [repeating()]).run(100)
    assert found.drafted[-1] == 0
    found.seconds = lambda tokens: 10 + 0.1 * tokens
    found.run(600)
    assert found.drafted[-1] == MOST_OF_REQUEST


@pytest.mark.parametrize("seed", range(8))
def test_other_work_on_the_machine_doesnt_end_drafts_that_pay(clock, seed):
    draw = random.Random(seed)

    def seconds(tokens):
        return (20.0 + 2 * tokens) * draw.choice((1, 1, 1, 2, 3))

    found = Decoding(clock, seconds, [repeating()] * 4).run(400)
    assert sum(drafted >= 8 for drafted in found.drafted[-200:]) > 150


def test_measurements_that_were_disturbed_are_soon_repeated(clock):
    found = Decoding(clock, lambda tokens: 10.0 + tokens if tokens == 1 else 1000.0, [repeating()]).run(9)
    assert sum(found.drafted) > 0 == found.drafted[-1]
    found.seconds = lambda tokens: 10 + 0.1 * tokens
    found.run(80)
    assert found.drafted[-1] == MOST_OF_REQUEST


def test_a_machine_that_becomes_quieter_isnt_taken_for_cheap_drafts(clock):
    """Steps without drafts that were measured before would make all others look cheap."""
    draw = random.Random(0)
    answers = [[draw.randrange(12) for _ in range(4000)]]
    found = Decoding(clock, lambda tokens: 10.0 * (8 + tokens), answers).run(30)
    found.seconds = lambda tokens: 8.0 + tokens
    begun, accepted = found.clock.now, found.speculation.accepted
    found.run(400)
    tokens = 400 + found.speculation.accepted - accepted
    assert found.clock.now - begun < 1.02 * tokens * (8.0 + 1)


def test_nothing_is_drafted_where_nothing_repeats(clock):
    found = Decoding(clock, lambda tokens: 1.0, [list(range(100, 400))]).run(300)
    assert found.speculation.drafted == 0


def test_guesses_that_are_seldom_right_are_seldom_tried(clock):
    draw = random.Random(0)
    answers = [[draw.randrange(12) for _ in range(2000)] for _ in range(2)]
    found = Decoding(clock, lambda tokens: 8.0 + tokens, answers).run(600)
    tokens = 2 * 600 + found.speculation.accepted
    assert found.clock.now < 1.02 * tokens * (8.0 + 2) / 2


@pytest.mark.parametrize("symbols", [2, 3, 5])
def test_guesses_that_are_sometimes_right_cost_little_where_any_draft_takes_long(clock, symbols):
    draw = random.Random(0)
    answers = [[draw.randrange(symbols) for _ in range(4000)] for _ in range(8)]
    found = Decoding(clock, lambda tokens: 12.0 + tokens + 5 * (tokens > 8), answers).run(600)
    tokens = 8 * 600 + found.speculation.accepted
    assert found.clock.now < 1.03 * tokens * (12.0 + 8) / 8


def test_long_drafts_are_made_where_only_the_first_token_costs(clock):
    found = Decoding(clock, lambda tokens: 10.0 + 5 * (tokens > 2) + 0.1 * tokens, [repeating()] * 2).run(100)
    assert sum(drafted >= 15 for drafted in found.drafted[-50:]) > 40


def test_after_drafts_that_lost_time_together_there_are_none_for_a_while():
    gains = DraftGains()
    for _ in range(4):
        assert not gains.pauses(8)
        gains.count(8, 1, 0.3)
    assert [gains.pauses(8) for _ in range(17)] == [True] * 16 + [False]
    assert not gains.pauses(3)  # other numbers of requests have their own
    for _ in range(4):
        gains.count(8, 1, 0.3)
    assert [gains.pauses(8) for _ in range(33)] == [True] * 32 + [False]
    for _ in range(6):  # it pays again
        gains.count(8, 4, 0.3)
    for _ in range(6):
        gains.count(8, 0, 0.3)
        if gains.pauses(8):
            break
    assert sum(gains.pauses(8) for _ in range(100)) == 15


def test_a_step_that_something_else_has_stopped_ends_no_drafts():
    gains = DraftGains()
    for _ in range(3):
        gains.count(1, 2, 0.5)
        gains.count(1, 0, 100.0)
        assert not gains.pauses(1)


def test_a_step_has_a_limit_of_drafted_tokens(clock):
    found = Decoding(clock, lambda tokens: 1.0, [repeating()] * 8).run(60)
    assert found.drafted[-1] == MOST_OF_STEP


def test_steps_without_drafts_are_measured_now_and_then(clock):
    found = Decoding(clock, lambda tokens: 1.0, [repeating()]).run(220)
    assert 3 <= found.drafted[10:].count(0) <= 15


def lookup_with(hits, misses):
    """A lookup with a guess, of a request with such a record."""
    rate = HitRate()
    for is_hit in [True] * hits + [False] * misses:
        rate.count(4, is_hit=is_hit)
    lookup = PromptLookup(repeating(30), 100, rate)
    lookup.add(PATTERN[0])
    return lookup


def test_drafts_are_as_long_as_pays(clock):
    """By trying every length: the expected tokens of a unit of time, where a token adds an eleventh of a step."""
    speculation = Decoding(clock, lambda tokens: 10.0 + tokens, [repeating()]).run(40).speculation
    lookup = lookup_with(12, 2)
    chances = list(lookup.chances(MOST_OF_REQUEST))
    rates = [(1 + sum(chances[:length])) / (1 + length / 11) for length in range(MOST_OF_REQUEST + 1)]
    (draft,) = speculation.drafts([lookup])
    assert 0 < len(draft) == rates.index(max(rates)) < MOST_OF_REQUEST


def test_requests_whose_guesses_are_right_are_drafted_and_others_are_not(clock):
    speculation = Decoding(clock, lambda tokens: 10.0 + tokens, [repeating()] * 3).run(40).speculation
    drafts = speculation.drafts([lookup_with(0, 20), lookup_with(20, 0), None])
    assert [bool(draft) for draft in drafts] == [False, True, False]
