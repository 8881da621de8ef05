"""What the demo says about its plan, word for word."""

from dataclasses import replace

from manytune.demo.machine import Machine
from manytune.demo.plan import Phase, Plan
from manytune.demo.wording import plan_lines, rest_line

PLAN = Plan(Phase(40, 3.0, 10.0), Phase(18, 4.0, 10.0), Phase(16, 12.0, 0.0), 28.0, 460.0)
MACHINE = Machine(99.6, 2, "cpu")


def test_the_plan_in_lines_of_60_columns() -> None:
    lines = plan_lines(MACHINE, PLAN)
    assert lines == [
        "100 GFLOP/s in float32 matrix products (2 threads)",
        "LoRA               40 steps, about 2 min 10 s",
        "full fine-tuning   18 steps, about 1 min 22 s",
        "answers            16 test papers, about 3 min 12 s",
        "Expected in all: 7 min 12 s.",
    ]
    assert max(map(len, lines)) <= 60


def test_a_plan_that_does_not_fit_says_so() -> None:
    line = plan_lines(MACHINE, replace(PLAN, budget=120.0))[-1]
    assert line == (
        "That is more than the 2 min 00 s left: this machine is slow today, and less than this would show nothing."
    )


def test_a_plan_without_a_budget_always_fits() -> None:
    assert plan_lines(MACHINE, replace(PLAN, budget=None))[-1].startswith("Expected")


def test_after_lora_the_rest_is_as_planned_or_says_what_changed() -> None:
    assert rest_line(PLAN, PLAN, 330.0) == (
        "5 min 30 s left, as planned: 18 steps of full fine-tuning, about 16 test papers."
    )
    faster = replace(PLAN, full=Phase(20, 3.0, 10.0))
    assert rest_line(PLAN, faster, 330.0) == (
        "5 min 30 s left, so now: 20 steps of full fine-tuning, about 16 test papers."
    )
    assert rest_line(PLAN, PLAN, 60.0) == (
        "1 min 00 s and at least 5 min 02 s needed, since the machine has become slower: "
        "18 steps of full fine-tuning, about 16 test papers."
    )
