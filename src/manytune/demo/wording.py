"""What the demo says about its plan."""

from __future__ import annotations

from manytune.demo.machine import Machine
from manytune.demo.plan import Phase, Plan
from manytune.training.progress import duration


def plan_lines(machine: Machine, plan: Plan) -> list[str]:
    """The machine and the plan, in short lines."""
    where = f"{machine.threads} threads" if machine.device == "cpu" else machine.device
    lines = [
        f"{machine.gflops:.0f} GFLOP/s in float32 matrix products ({where})",
        f"LoRA              {_counted(plan.lora, 'step')}",
        f"full fine-tuning  {_counted(plan.full, 'step')}",
        f"answers           {_counted(plan.answers, 'test paper')}",
        f"Expected in all: {duration(plan.seconds)}.",
    ]
    if not plan.fits and plan.budget is not None:
        lines.append(
            f"That is more than the {duration(plan.budget)} left: this machine is slow today, and less than this "
            "would show nothing."
        )
    return lines


def rest_line(before: Plan, after: Plan, left: float) -> str:
    """How the plan changed after LoRA's training."""
    steps, papers = after.full.units, after.answers.units
    kept = (steps, papers) == (before.full.units, before.answers.units)
    expected = after.full.seconds + after.answers.seconds + after.reserved
    if expected > left:
        what = f"and at least {duration(expected)} needed, since the machine has become slower:"
    else:
        what = "left, as planned:" if kept else "left, so now:"
    return f"{duration(max(0, left))} {what} {steps} steps of full fine-tuning, about {papers} test papers."


def _counted(phase: Phase, unit: str) -> str:
    return f"{phase.units:3} {unit}{'' if phase.units == 1 else 's'}, about {duration(phase.seconds)}"
