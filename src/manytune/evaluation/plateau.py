"""Which rank is enough: the smallest that isn't significantly worse than the best, by a test on validation rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from manytune.evaluation.metrics.base import Floats
from manytune.evaluation.ranks import RankPoint, Sweep
from manytune.evaluation.records import GroupLoss
from manytune.evaluation.resampling import DEFAULT, Resampling
from manytune.evaluation.significance import holm, paired_test

ALPHA = DEFAULT.alpha
"""The significance level of the test."""


def find_plateau(
    points: Sequence[RankPoint],
    losses: Mapping[str, Sequence[Sequence[GroupLoss]]],
    *,
    rows: int,
    resampling: Resampling = DEFAULT,
) -> Sweep:
    """Find the smallest point that isn't significantly worse than the best one: of the fewest rows, the smallest rank.

    The best has the lowest validation loss, a mean over all target tokens and training seeds. Every other
    point is compared with it by a paired randomization test over independent groups of validation rows, and
    the p-values are corrected for their number by Holm's method. Test rows aren't used. The best was selected
    on the same rows, which makes it look a little better than it is: if the rule errs, then towards a
    larger rank.

    Args:
        points: What was tried; their p-values are filled in.
        losses: By system, for each training seed the loss on each group.
        rows: Validation rows in these groups.
        resampling: Randomizations of a test, and their seed.
    """
    ordered = sorted(points, key=lambda point: (point.rows or 0, point.trainable_params, point.rank))
    clusters = {point.system: _over_seeds(losses[point.system]) for point in ordered}
    best = min(ordered, key=lambda point: point.validation_loss)
    others = [point for point in ordered if point is not best]
    p_values = holm(
        [
            paired_test(_loss, clusters[best.system], clusters[other.system], resampling=resampling)
            for other in others
        ]
    )
    corrected = dict(zip((other.system for other in others), p_values, strict=True))
    tested = tuple(dataclasses.replace(point, p_value=corrected.get(point.system)) for point in ordered)
    chosen = next(point for point in tested if point.p_value is None or point.p_value >= ALPHA)
    groups = len(clusters[best.system])
    return Sweep(tested, best.system, chosen.system, _reason(chosen, best, tested, groups), rows, groups)


def _over_seeds(losses: Sequence[Sequence[GroupLoss]]) -> Floats:
    """Rows `(nll, tokens)` a group, the mean over the seeds."""
    rows: Floats = np.mean([[(group.nll, group.tokens) for group in one] for one in losses], axis=0)
    return rows


def _loss(sums: Floats) -> Floats:
    result: Floats = sums[..., 0] / sums[..., 1]
    return result


def _reason(chosen: RankPoint, best: RankPoint, points: Sequence[RankPoint], groups: int) -> str:
    if chosen.system == best.system:
        if chosen.system == points[0].system:
            return (
                f"{chosen.system} is the smallest that was tried and has the lowest validation loss "
                f"({best.validation_loss:.3f})."
            )
        return (
            f"{chosen.system} has the lowest validation loss ({best.validation_loss:.3f}), and every smaller one is "
            f"worse by the test (p < {ALPHA:g})."
        )
    share = chosen.trainable_params / best.trainable_params
    less = f"{share:.0%} of its parameters"
    if chosen.rows is not None and best.rows is not None:
        less = f"{chosen.rows:,} rows instead of {best.rows:,} and {less}"
    return (
        f"The lowest validation loss is that of {best.system} ({best.validation_loss:.3f}), and {chosen.system} "
        f"({chosen.validation_loss:.3f}) is the smallest that isn't significantly worse (p = {chosen.p_value:.2f}, "
        f"{groups} groups), with {less}."
    )
