"""Holm's correction, and shares of a gain."""

import numpy as np
import pytest

from manytune.evaluation.resampling import Resampling
from manytune.evaluation.significance import gain_share, holm


def mean(sums):
    return sums[..., 0] / sums[..., 1]


def rows(scores):
    return np.column_stack([scores, np.ones(len(scores))])


@pytest.mark.parametrize(
    ("p_values", "expected"),
    [
        ([], ()),
        ([0.03], (0.03,)),
        ([0.01, 0.04, 0.03], (0.03, 0.06, 0.06)),  # 3·0.01; 2·0.03; 0.04 is not below the one before it
        ([0.5, 0.9], (1.0, 1.0)),
        ([0.02, 0.02], (0.04, 0.04)),
    ],
)
def test_holms_correction_is_that_of_the_textbook(p_values, expected):
    assert holm(p_values) == pytest.approx(expected)


def test_a_share_is_the_part_of_the_references_gain_and_its_interval_holds_it():
    rng = np.random.default_rng(0)
    base = rng.beta(2, 6, size=200)
    full = base + 0.2 + rng.normal(0, 0.02, size=200)
    ours = base + 0.15 + rng.normal(0, 0.02, size=200)
    share, interval = gain_share(
        mean, rows(base), rows(full), rows(ours), resampling=Resampling(resamples=2000)
    )
    assert share == pytest.approx((ours.mean() - base.mean()) / (full.mean() - base.mean()))
    assert interval.low < 0.75 < interval.high
    assert interval.high - interval.low < 0.1
    whole, certain = gain_share(
        mean, rows(base), rows(full), rows(full), resampling=Resampling(resamples=500)
    )
    assert whole == 1.0 and certain is None  # every resample gives 1, and a share has no bounds


@pytest.mark.slow
def test_intervals_of_shares_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(1)
    held = 0
    for simulation in range(1000):
        base = rng.beta(2, 6, size=40)
        full = base + 0.2 + rng.normal(0, 0.1, size=40)
        ours = base + 0.15 + rng.normal(0, 0.1, size=40)
        _, interval = gain_share(
            mean, rows(base), rows(full), rows(ours), resampling=Resampling(resamples=500, seed=simulation)
        )
        held += interval.low <= 0.75 <= interval.high
    assert 0.93 <= held / 1000 <= 0.97
