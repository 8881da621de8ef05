import dataclasses

import numpy as np
import pytest

from manytune.evaluation.plateau import find_plateau
from manytune.evaluation.ranks import RankPoint
from manytune.evaluation.records import GroupLoss
from manytune.evaluation.resampling import Resampling


def ranks(mean_losses, *, noise=0.02, groups=40, seeds=1):
    """Points with these true losses; what makes a group hard is the same for all of them."""
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 0.5, size=groups)
    points, losses = [], {}
    for place, loss in enumerate(mean_losses):
        rank = 2**place
        name = f"r={rank}"
        losses[name] = [
            [GroupLoss(20 * float(loss + hard[n] + rng.normal(0, noise)), 20) for n in range(groups)]
            for _ in range(seeds)
        ]
        seed_losses = tuple(float(np.mean([one.nll / 20 for one in of_seed])) for of_seed in losses[name])
        points.append(
            RankPoint(
                name, rank, "all-linear", 1000 * rank, float(np.mean(seed_losses)), seed_losses, 1.0, None
            )
        )
    return points, losses


def test_the_smallest_that_is_not_significantly_worse_is_recommended():
    points, losses = ranks([2.5, 2.2, 2.0, 2.0, 2.0])
    sweep = find_plateau(points, losses, rows=120, resampling=Resampling(resamples=2000))
    assert sweep.recommended == "r=4"
    assert [point.p_value is None or point.p_value >= 0.05 for point in sweep.points] == [
        False,
        False,
        True,
        True,
        True,
    ]
    assert sweep.point(sweep.best).p_value is None
    assert (sweep.rows, sweep.clusters) == (120, 40)
    assert "r=4" in sweep.reason and sweep.best in sweep.reason


def test_a_loss_that_still_falls_recommends_the_largest():
    sweep = find_plateau(*ranks([2.5, 2.3, 2.1]), rows=40, resampling=Resampling(resamples=2000))
    assert sweep.recommended == sweep.best == "r=4"
    assert "every smaller one is worse" in sweep.reason


def test_with_few_groups_nothing_is_significant_so_the_smallest_is_enough():
    sweep = find_plateau(*ranks([2.02, 2.01, 2.0], groups=4), rows=4, resampling=Resampling(resamples=2000))
    assert sweep.recommended == "r=1"


def test_the_smallest_is_meant_by_parameters_whatever_the_order():
    points, losses = ranks([2.5, 2.0, 2.0])
    points = [dataclasses.replace(points[2], trainable_params=1), points[0], points[1]]
    sweep = find_plateau(points, losses, rows=40, resampling=Resampling(resamples=500))
    assert [point.system for point in sweep.points] == ["r=4", "r=1", "r=2"]
    assert sweep.recommended == "r=4"


def test_seeds_are_averaged_before_the_test():
    points, losses = ranks([2.3, 2.0, 2.0], seeds=3)
    sweep = find_plateau(points, losses, rows=40, resampling=Resampling(resamples=2000))
    assert sweep.recommended == "r=2"
    assert all(len(point.seed_losses) == 3 for point in sweep.points)
    assert sweep.point("r=2").validation_loss == pytest.approx(np.mean(sweep.point("r=2").seed_losses))
