"""How much training and how many test papers fit into a time budget. Pure arithmetic: nothing is measured here.

The time of a phase is its floating-point operations over the speed that the machine reaches. With N weights in
the linear layers, H in the language model's head and T tokens, a forward pass takes 2NT, and so does a
backward pass down to the adapters; gradients of the weights themselves take another 2NT. Attention is left
out: at a few hundred tokens it adds some per cent, which the measured speed absorbs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import floor

# How much of the matrix-product speed is reached, before a training step and the first answers were timed.
TRAINING_EFFICIENCY = 0.6
ANSWERING_EFFICIENCY = 0.25

# Loading the base a second time, scoring and the report: so much of the budget, and at least so many seconds.
RESERVED_SHARE = 0.06
RESERVED_SECONDS = 15.0

SYSTEMS = 3
"""Systems that answer: the base, LoRA and full fine-tuning."""
PASSAGES, PASSAGE_TOKENS = 6, 192
"""Running text that every system reads where there is time, to see what it forgot."""
VALIDATION_PAPERS = 2
VALIDATIONS = 3
"""Validation losses of a training: before it, half-way and at its end."""


@dataclass(frozen=True)
class Workload:
    """What one paper costs.

    Attributes:
        layer_weights: N, weights of the model's linear layers.
        head_weights: H, weights of the language model's head.
        document_tokens: Prompt tokens that the questions on one paper share.
        question_tokens: Prompt tokens that each question adds.
        answer_tokens: Tokens of an answer.
        questions: Questions on each paper.
    """

    layer_weights: int
    head_weights: int
    document_tokens: float
    question_tokens: float
    answer_tokens: float
    questions: int

    @property
    def reading(self) -> float:
        """Operations to read one paper with its questions and read or write its answers, the document once."""
        tokens = self.document_tokens + self.questions * (self.question_tokens + self.answer_tokens)
        return 2 * self.layer_weights * tokens + 2 * self.head_weights * self.questions * self.answer_tokens

    @property
    def probing(self) -> float:
        """Operations of one system to read the passages."""
        return 2 * (self.layer_weights + self.head_weights) * PASSAGES * PASSAGE_TOKENS

    @property
    def lora(self) -> float:
        """Operations to train adapters on one paper."""
        return 2 * self.reading

    @property
    def full(self) -> float:
        """Operations to train every weight on one paper."""
        return 3 * self.reading


@dataclass(frozen=True)
class Speed:
    """Operations a second that are reached, in training and in answering."""

    training: float
    answering: float

    @classmethod
    def expected(cls, gflops: float) -> Speed:
        """What to expect of a machine whose matrix products run at `gflops`."""
        return cls.measured(gflops * 1e9 * TRAINING_EFFICIENCY)

    @classmethod
    def measured(cls, training: float) -> Speed:
        """What to expect when training was seen to reach so many operations a second."""
        return cls(training, training * ANSWERING_EFFICIENCY / TRAINING_EFFICIENCY)


@dataclass(frozen=True)
class Limits:
    """The least and the most units of a phase, and its share of the time between them."""

    least: int
    most: int
    share: float


# One step is one paper with its three questions: on a small budget, more steps teach more than larger ones do.
LORA_STEPS = Limits(least=10, most=100, share=0.38)
FULL_STEPS = Limits(least=5, most=60, share=0.22)
TEST_PAPERS = Limits(least=6, most=100, share=0.4)

# The long version: three times and twice through the 100 papers, and every test paper.
LONG_LORA_STEPS, LONG_FULL_STEPS, LONG_TEST_PAPERS = 300, 200, 100


@dataclass(frozen=True)
class Phase:
    """One part of the demo: so many units at so many seconds, and seconds that don't depend on their number."""

    units: int
    unit_seconds: float
    fixed_seconds: float

    @property
    def seconds(self) -> float:
        """Expected duration."""
        return self.fixed_seconds + self.units * self.unit_seconds


@dataclass(frozen=True)
class Plan:
    """What will be done, and how long it should take.

    Attributes:
        lora: Training of the adapters, in steps.
        full: Training of every weight, in steps.
        answers: Answers of all systems, in test papers.
        reserved: Seconds for everything else.
        budget: Seconds that were given; None for no limit.
    """

    lora: Phase
    full: Phase
    answers: Phase
    reserved: float
    budget: float | None

    @property
    def seconds(self) -> float:
        """Expected duration in all."""
        return self.lora.seconds + self.full.seconds + self.answers.seconds + self.reserved

    @property
    def fits(self) -> bool:
        """Whether it stays within the budget; on a slow machine, even the least of everything may not."""
        return self.budget is None or self.seconds <= self.budget


def make_plan(workload: Workload, speed: Speed, seconds: float) -> Plan:
    """Divide a budget over the two trainings and the answers.

    Each phase gets its least first; what is left is divided by their shares, and what one phase can't use goes
    to the others.
    """
    reserved = max(RESERVED_SECONDS, RESERVED_SHARE * seconds)
    lora, full, answers = _divide(_needs(workload, speed), seconds - reserved)
    return Plan(lora, full, answers, reserved, seconds)


def plan_rest(plan: Plan, workload: Workload, speed: Speed, seconds: float) -> Plan:
    """Plan again after LoRA's training, with the speed that it had and the time that is left.

    Args:
        plan: The plan so far.
        workload: What one paper costs.
        speed: As it was seen.
        seconds: Seconds left for everything that is to come.

    Returns:
        The plan with full fine-tuning and the answers fitted to that time.
    """
    full, answers = _divide(_needs(workload, speed)[1:], seconds - plan.reserved)
    return replace(plan, full=full, answers=answers)


def long_plan(workload: Workload, speed: Speed) -> Plan:
    """The long version, which takes the time that it takes."""
    units = (LONG_LORA_STEPS, LONG_FULL_STEPS, LONG_TEST_PAPERS)
    lora, full, answers = (
        Phase(count, need.unit_seconds, need.fixed_seconds)
        for count, need in zip(units, _needs(workload, speed), strict=True)
    )
    return Plan(lora, full, answers, RESERVED_SECONDS, None)


def affords_passages(plan: Plan, workload: Workload, speed: Speed) -> bool:
    """Whether the systems can read the passages and still be asked about a fair number of papers."""
    papers_lost = SYSTEMS * workload.probing / speed.training / plan.answers.unit_seconds
    return plan.budget is None or plan.answers.units - papers_lost >= 2 * TEST_PAPERS.least


@dataclass(frozen=True)
class _Need:
    limits: Limits
    unit_seconds: float
    fixed_seconds: float


def _needs(workload: Workload, speed: Speed) -> list[_Need]:
    """What LoRA, full fine-tuning and the answers take, in this order."""
    validating = VALIDATIONS * VALIDATION_PAPERS * workload.reading / speed.training
    return [
        _Need(LORA_STEPS, workload.lora / speed.training, validating),
        _Need(FULL_STEPS, workload.full / speed.training, validating),
        _Need(TEST_PAPERS, SYSTEMS * workload.reading / speed.answering, 0.0),
    ]


def _divide(needs: Sequence[_Need], seconds: float) -> list[Phase]:
    units = [need.limits.least for need in needs]
    least = sum(need.fixed_seconds + need.limits.least * need.unit_seconds for need in needs)
    spare = max(0.0, seconds - least)
    hungry = set(range(len(needs)))
    while hungry:
        shares = sum(needs[index].limits.share for index in hungry)
        offers = {index: spare * needs[index].limits.share / shares for index in hungry}
        full = {
            index
            for index, offer in offers.items()
            if units[index] + offer / needs[index].unit_seconds >= needs[index].limits.most
        }
        if not full:
            for index, offer in offers.items():
                units[index] += floor(offer / needs[index].unit_seconds)
            break
        for index in full:
            need = needs[index]
            spare -= (need.limits.most - units[index]) * need.unit_seconds
            units[index] = need.limits.most
        hungry -= full
    return [
        Phase(count, need.unit_seconds, need.fixed_seconds) for count, need in zip(units, needs, strict=True)
    ]
