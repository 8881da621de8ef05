"""Answering against the clock, with systems that take a given time."""

from collections.abc import Sequence
from itertools import pairwise

import pytest

from manytune.demo.answers import MOST_PAPERS, Answered, answer_until
from manytune.evaluation.answers import Question
from manytune.evaluation.results import Answer, Item


class Clock:
    """Seconds that pass only when a system works."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class System:
    """Says its name and the question, after so many seconds a question."""

    def __init__(self, name: str, clock: Clock, seconds: float) -> None:
        self.name, self.clock, self.seconds = name, clock, seconds
        self.batches: list[int] = []

    def __call__(self, questions: Sequence[Question]) -> list[Answer]:
        self.clock.now += self.seconds * len(questions)
        self.batches.append(len(questions))
        return [Answer(f"{self.name} on {question.item.prompt}", 1, "stop") for question in questions]


def papers(count: int) -> list[tuple[Question, ...]]:
    return [
        tuple(
            Question(Item(f"paper {paper} question {q}", ("reference",), "test.jsonl", 1), ())
            for q in range(3)
        )
        for paper in range(count)
    ]


def run(
    count: int, seconds: float, *, each: float = 1.0, least: int = 4
) -> tuple[Answered, Clock, list[System]]:
    clock = Clock()
    systems = [System(name, clock, each) for name in ("base", "LoRA")]
    answered = answer_until(
        papers(count),
        {system.name: system for system in systems},
        seconds=seconds,
        least=least,
        progress=lambda *_: None,
        clock=clock,
    )
    return answered, clock, systems


def test_every_system_answers_the_same_questions_in_order() -> None:
    answered, _, _ = run(10, 40)
    prompts = [question.item.prompt for question in answered.questions]
    assert prompts == [f"paper {paper} question {q}" for paper in range(answered.papers) for q in range(3)]
    for name in ("base", "LoRA"):
        assert [answer.text for answer in answered.answers[name]] == [f"{name} on {p}" for p in prompts]


@pytest.mark.parametrize("seconds", [30, 60, 100, 333])
def test_the_time_is_used_but_not_exceeded(seconds: float) -> None:
    answered, clock, _ = run(1000, seconds)  # a paper takes six seconds
    assert clock.now - 1000 <= seconds
    assert seconds - answered.seconds < 6 * 1.15
    assert answered.papers == answered.seconds / 6


def test_a_machine_that_slows_down_stops_earlier() -> None:
    clock = Clock()
    slowing = System("base", clock, 1.0)

    def progress(name: str, first: int, last: int) -> None:
        slowing.seconds *= 1.1

    answered = answer_until(
        papers(1000), {"base": slowing}, seconds=120, least=4, progress=progress, clock=clock
    )
    assert answered.seconds < 130


def test_the_least_is_answered_even_if_the_time_is_up() -> None:
    answered, _, _ = run(10, 0, least=4)
    assert answered.papers == 4


def test_all_papers_are_answered_if_there_is_time_and_no_more() -> None:
    answered, _, systems = run(30, float("inf"))
    assert answered.papers == 30
    assert max(systems[0].batches) == 3 * MOST_PAPERS


def test_progress_is_reported_before_each_system_begins() -> None:
    reported: list[tuple[str, int, int]] = []
    clock = Clock()
    systems = {name: System(name, clock, 1.0) for name in ("base", "LoRA")}
    answer_until(
        papers(12),
        systems,
        seconds=1e9,
        least=4,
        progress=lambda name, first, last: reported.append((name, first, last)),
        clock=clock,
    )
    assert [name for name, _, _ in reported] == ["base", "LoRA"] * (len(reported) // 2)
    spans = [(first, last) for name, first, last in reported if name == "base"]
    assert spans[0][0] == 1
    assert spans[-1][1] == 12
    assert all(before[1] + 1 == after[0] for before, after in pairwise(spans))
