"""What systems may forget: how much each lost on a probe, and which of those that stay within a budget is the best."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Literal

from manytune.evaluation.budgets import Budget, Limit, Spent
from manytune.evaluation.evaluate import System
from manytune.evaluation.metric_over_seeds import MetricOverSeeds
from manytune.evaluation.metrics import Metric
from manytune.evaluation.resampling import DEFAULT, Resampling
from manytune.evaluation.results import Item
from manytune.evaluation.significance import cluster_sums
from manytune.evaluation.tost import Paired, influence


def spent_on(
    items: Sequence[Item],
    systems: Sequence[System],
    metric: Metric,
    at_most: float,
    *,
    resampling: Resampling = DEFAULT,
) -> tuple[Spent, ...]:
    """How much each system lost, compared with the first one, and whether a test shows that it is more than allowed.

    One-sided tests as in `tost`: `"beyond"` if the loss is shown to be larger than the budget, `"within"` if it is
    shown to be smaller, else `"cannot tell"`. Of a score that is good when low, such as a perplexity, a loss is an
    increase.

    Args:
        items: What the probe asks.
        systems: The untouched base first; each with the answers of all its training seeds.
        metric: How the probe is scored.
        at_most: The share of the base's score that may be lost.
        resampling: The tests' level.
    """
    references = [item.references for item in items]
    groups = [item.group for item in items]
    seeds = max(1 + len(system.other_seeds) for system in systems)
    over = MetricOverSeeds(metric, "", seeds, resampling)
    values = [
        influence(
            over.of_seeds,
            cluster_sums(over.statistics((system.answers, *system.other_seeds), references), groups),
        )
        for system in systems
    ]
    base, *others = values
    if not base.mean() > 0:  # nothing is there that could be lost
        return tuple(Spent(system.name, 0.0, None, None, "within") for system in systems[1:])
    sign = 1 if metric.higher_is_better else -1
    edge = 1 - sign * at_most
    found = []
    for system, ours in zip(systems[1:], others, strict=True):
        pair = Paired(ours, base, metric.bounds)
        smaller, larger = pair.p_above(edge), pair.p_below(edge)  # shown to be below, or above, the edge
        beyond, within = (smaller, larger) if sign > 0 else (larger, smaller)
        verdict: Literal["within", "beyond", "cannot tell"] = "cannot tell"
        if beyond < resampling.alpha:
            verdict = "beyond"
        elif within < resampling.alpha:
            verdict = "within"
        interval = pair.ratio_interval(1 - 2 * resampling.alpha)
        ends = sorted(sign * (1 - end) for end in interval) if interval else (None, None)
        found.append(Spent(system.name, sign * (1 - pair.ratio), ends[0], ends[1], verdict))
    return tuple(found)


def keep_to(limit: Limit, spent: Sequence[Spent], validation: Mapping[str, float]) -> Budget:
    """Choose the system with the lowest validation loss of those that aren't shown to have lost more than allowed.

    Args:
        limit: The budget.
        spent: How much each system lost.
        validation: Each system's validation loss; systems without one aren't chosen.
    """
    eligible = [
        one.system
        for one in spent
        if one.verdict != "beyond" and math.isfinite(validation.get(one.system, math.inf))
    ]
    chosen = min(eligible, key=lambda name: validation[name], default=None)
    losses = tuple(dataclasses.replace(one, validation_loss=validation.get(one.system)) for one in spent)
    return Budget(limit.probe, limit.at_most, losses, chosen)


def budget_sentence(budget: Budget | None) -> str | None:
    """Which system a budget chooses, and what the others lost; None without a budget."""
    if budget is None:
        return None
    allowed = f"{100 * budget.at_most:.3g}% on {budget.probe}"
    beyond = [one for one in budget.spent if one.verdict == "beyond"]
    rest = f" Beyond it: {', '.join(map(_lost, beyond))}." if beyond else ""
    if budget.chosen is None:
        return f"No system keeps to the budget: each is shown to have lost more than {allowed}.{rest}"
    chosen = next(one for one in budget.spent if one.system == budget.chosen)
    certain = {
        "within": "shown to be within the budget",
        "cannot tell": "not shown to be beyond it, nor within",
    }
    return (
        f"Of the systems that aren't shown to have lost more than {allowed}, {budget.chosen} has the lowest validation "
        f"loss ({chosen.validation_loss:.3f}): {_lost(chosen)}, {certain[chosen.verdict]}.{rest}"
    )


def _lost(one: Spent) -> str:
    text = (
        f"{one.system} lost {100 * one.lost:.1f}%"
        if one.lost >= 0
        else f"{one.system} gained {-100 * one.lost:.1f}%"
    )
    if one.low is None or one.high is None:
        return text
    return f"{text} ({100 * one.low:.1f}% to {100 * one.high:.1f}%)".replace("-", "\N{MINUS SIGN}")
