"""The plan as arithmetic: limits, budgets, and what a slower machine gets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manytune.demo.plan import (
    FULL_STEPS,
    LONG_FULL_STEPS,
    LONG_LORA_STEPS,
    LONG_TEST_PAPERS,
    LORA_STEPS,
    RESERVED_SECONDS,
    TEST_PAPERS,
    Phase,
    Plan,
    Speed,
    Workload,
    affords_passages,
    long_plan,
    make_plan,
    plan_rest,
)

# SmolLM2-135M and ACLSum: 30 layers of 3,538,944 weights, a vocabulary of 49,152 by 576.
DEMO = Workload(
    layer_weights=106_168_320,
    head_weights=28_311_552,
    document_tokens=200,
    question_tokens=18,
    answer_tokens=30,
    questions=3,
)
LIMITS = (LORA_STEPS, FULL_STEPS, TEST_PAPERS)
gflops = st.floats(1, 10_000)
budgets = st.floats(60, 7200)


def phases(plan: Plan) -> tuple[Phase, Phase, Phase]:
    return plan.lora, plan.full, plan.answers


def test_operations_of_a_paper_by_hand() -> None:
    tiny = Workload(
        layer_weights=10, head_weights=4, document_tokens=5, question_tokens=2, answer_tokens=3, questions=2
    )
    # 5 + 2 (2 + 3) = 15 tokens through 10 weights, 6 answer tokens through 4: a multiplication and an addition each.
    assert tiny.reading == 2 * (15 * 10 + 6 * 4)
    assert tiny.lora == 2 * tiny.reading
    assert tiny.full == 3 * tiny.reading


@given(gflops, budgets)
def test_every_phase_keeps_its_limits(speed: float, seconds: float) -> None:
    for phase, limits in zip(phases(make_plan(DEMO, Speed.expected(speed), seconds)), LIMITS, strict=True):
        assert limits.least <= phase.units <= limits.most


@given(gflops, budgets)
def test_the_budget_is_kept_unless_even_the_least_exceeds_it(speed: float, seconds: float) -> None:
    plan = make_plan(DEMO, Speed.expected(speed), seconds)
    assert plan.fits == (plan.seconds <= seconds)
    if not plan.fits:
        assert [phase.units for phase in phases(plan)] == [limits.least for limits in LIMITS]


@given(gflops, budgets)
def test_no_time_is_left_over_that_another_unit_of_an_open_phase_would_fit_into(
    speed: float, seconds: float
) -> None:
    plan = make_plan(DEMO, Speed.expected(speed), seconds)
    still_open = [p for p, limits in zip(phases(plan), LIMITS, strict=True) if p.units < limits.most]
    assert not still_open or seconds - plan.seconds < sum(phase.unit_seconds for phase in still_open) + 1e-6


@given(gflops, gflops, budgets)
def test_a_faster_machine_never_gets_less(one: float, other: float, seconds: float) -> None:
    slow, fast = (make_plan(DEMO, Speed.expected(speed), seconds) for speed in sorted((one, other)))
    assert all(a.units <= b.units + 1 for a, b in zip(phases(slow), phases(fast), strict=True))


@pytest.mark.parametrize("speed", [30, 50, 100, 140])
def test_eight_minutes_are_enough_on_the_machines_that_it_was_made_for(speed: float) -> None:
    assert make_plan(DEMO, Speed.expected(speed), 8 * 60 - 15).fits


def test_at_100_gflops_the_test_set_is_large_enough_for_an_interval() -> None:
    plan = make_plan(DEMO, Speed.expected(100), 8 * 60 - 15)
    assert plan.lora.units >= 30
    assert plan.answers.units >= 15


def test_a_machine_too_slow_for_the_budget_gets_a_warning() -> None:
    assert not make_plan(DEMO, Speed.expected(3), 8 * 60).fits


def test_the_rest_is_fitted_to_the_time_that_is_left_and_the_past_is_kept() -> None:
    plan = make_plan(DEMO, Speed.expected(100), 480)
    slowed = plan_rest(plan, DEMO, Speed.expected(40), 260)
    assert slowed.lora == plan.lora
    assert slowed.full.units < plan.full.units
    assert slowed.full.seconds + slowed.answers.seconds + slowed.reserved <= 260


def test_the_long_version_has_no_budget_and_asks_about_every_paper() -> None:
    plan = long_plan(DEMO, Speed.expected(100))
    assert [p.units for p in phases(plan)] == [LONG_LORA_STEPS, LONG_FULL_STEPS, LONG_TEST_PAPERS]
    assert plan.budget is None
    assert plan.fits


def test_a_measured_training_speed_scales_what_is_expected_of_answering() -> None:
    expected = Speed.expected(100)
    assert Speed.measured(expected.training / 3).answering == pytest.approx(expected.answering / 3)


def test_something_is_always_reserved() -> None:
    assert make_plan(DEMO, Speed.expected(100), 60).reserved == RESERVED_SECONDS
    assert make_plan(DEMO, Speed.expected(100), 6000).reserved > RESERVED_SECONDS


def test_passages_are_read_only_where_papers_enough_remain() -> None:
    fast, slow = Speed.expected(140), Speed.expected(30)
    assert affords_passages(make_plan(DEMO, fast, 465), DEMO, fast)
    assert not affords_passages(make_plan(DEMO, slow, 465), DEMO, slow)
    assert affords_passages(long_plan(DEMO, slow), DEMO, slow)
