"""How sure one can be, in words: what a test that found nothing could have found, and what is equivalent."""

from __future__ import annotations

from manytune.evaluation.equivalence import Equivalence
from manytune.evaluation.metrics import METRICS
from manytune.evaluation.results import Comparison, Evaluation

_FIRST_DIGITS = 2  # of a number of prompts that is no more than an estimate


def power_text(found: Comparison) -> str:
    """What a test that found nothing could have found, such as `a difference of 0.031 would be found 4 times of 5`.

    Empty where the test found something, and where nothing is known about its power.
    """
    if found.verdict != "cannot tell" or found.detectable is None:
        return ""
    return f"a difference of {_size(found)} would be found 4 times of 5"


def power_note(found: Comparison) -> tuple[str, ...]:
    """The same for a table's cell, as the one remark or as none."""
    known = found.verdict == "cannot tell" and found.detectable is not None
    return (f"finds {_size(found)}",) if known else ()


def power_sentence(evaluation: Evaluation, found: Comparison) -> str:
    """The power of a test that found nothing, and how many prompts a difference like the observed one would take."""
    text = power_text(found)
    if not text:
        return ""
    sentence = f"With these prompts {text}"
    observed = abs(found.difference)
    if not 0 < observed < (found.detectable or 0.0):
        return f"{sentence}."
    factor = ((found.detectable or 0.0) / observed) ** 2
    needed = about(len(evaluation.items) * factor)
    metric = METRICS[found.metric]
    shown = f"{observed:.{metric.digits}f}"
    if not any(digit in shown for digit in "123456789"):
        return f"{sentence}; one as small as the observed would take more prompts than are worth it."
    return f"{sentence}; one of {shown}, as observed, would take {needed} prompts."


def equivalence_sentence(evaluation: Evaluation) -> str | None:
    """Which systems are shown to be as good as the reference by the deciding metric; None if it wasn't asked."""
    found = [one for one in evaluation.equivalences if one.metric == evaluation.primary]
    if not found:
        return None
    first = found[0]
    label, level = METRICS[first.metric].label, 1 - 2 * (1 - evaluation.inference.level)
    parts = "; ".join(_equivalence(one) for one in found)
    return (
        f"Within {_percent(first.margin)} of {first.reference} by {label} (two one-sided tests, {level:.0%} "
        f"intervals): {parts}."
    )


def about(prompts: float) -> str:
    """A number of prompts as the estimate that it is: `about 1,900`."""
    rounded = float(f"{prompts:.{_FIRST_DIGITS}g}")
    return f"about {rounded:,.0f}"


def _equivalence(found: Equivalence) -> str:
    score = f"{_percent(found.ratio)}"
    if found.low is not None and found.high is not None:
        score += f", {_percent(found.low)} to {_percent(found.high)}"
    margin = _percent(found.margin)
    if found.verdict == "within":
        return f"shown for {found.system} ({score})"
    if found.verdict in ("better", "worse"):
        return (
            f"shown not to be so for {found.system}, which is {found.verdict} by more than {margin} ({score})"
        )
    if found.prompts_needed is None:
        remedy = "no number of prompts would show it with this spread"
    else:
        remedy = f"{about(found.prompts_needed)} prompts would show it 4 times of 5 if they are equal"
    return f"cannot tell for {found.system} ({score}; {remedy})"


def _percent(share: float) -> str:
    percent = 100 * share
    return f"{percent:.1f}%" if percent >= 10 and percent % 1 else f"{percent:.3g}%"


def _size(found: Comparison) -> str:
    return f"{found.detectable:.{METRICS[found.metric].digits}f}"
