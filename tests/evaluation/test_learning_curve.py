import re

import numpy as np
import pytest

from manytune.evaluation.learning_curve import curve_sentence, fit, learning_curve, predict
from manytune.evaluation.records import GroupLoss
from manytune.evaluation.resampling import Resampling

ROWS = [100, 300, 1000, 3000]
FEW = Resampling(resamples=500)


def groups(losses, spread=0.05, groups=60, seeds=1, seed=0):
    """Losses of groups of 20 tokens around each given mean, the same groups for every number of rows."""
    rng = np.random.default_rng(seed)
    common = rng.normal(0, 0.3, groups)
    cells = [loss + common + rng.normal(0, spread, groups) for loss in losses]
    return [[[GroupLoss(20 * loss, 20) for loss in cell]] * seeds for cell in cells]


def law(rows):
    return 1.5 + 8 * np.asarray(rows, dtype=float) ** -0.5


def test_the_fit_finds_the_law_that_made_the_losses():
    floor, scale, exponent = fit(np.array(ROWS, dtype=float), law(ROWS)[None])[0]
    assert (floor, scale, exponent) == pytest.approx((1.5, 8, 0.5), rel=0.1)
    assert predict(np.array([[1.5, 8, 0.5]]), [10_000])[0, 0] == pytest.approx(1.58)


def test_intervals_hold_the_true_loss_with_more_rows_about_as_often_as_they_say():
    held, tried = 0, 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        cells = [[[GroupLoss(20 * loss, 20) for loss in rng.normal(mean, 0.1, 80)]] for mean in law(ROWS)]
        curve = learning_curve("r=4", ROWS, cells, resampling=FEW)
        for one in curve.extrapolated[:1]:
            tried += 1
            held += one.low <= law([one.rows])[0] <= one.high
    assert tried > 40 and held / tried > 0.85


def test_an_extrapolation_says_its_law_and_its_interval():
    curve = learning_curve("r=4", ROWS, groups(law(ROWS), 0.01), resampling=FEW)
    assert [one.rows for one in curve.extrapolated] == [6000, 12000] and curve.why_not == ""
    assert curve_sentence(curve).startswith("r=4: the validation loss goes from ")
    assert f"(exponent {curve.exponent:.2f}) holds, " in curve_sentence(curve)


@pytest.mark.parametrize(
    ("rows", "losses", "spread", "reason"),
    [
        (ROWS[:2], law(ROWS[:2]), 0.01, "a power law needs 3 numbers of rows or more"),
        (ROWS, [2.0, 2.1, 2.0, 2.2], 0.01, "more rows didn't lower the loss"),
        (ROWS, [2.3, 2.1, 2.29, 2.0], 0.0, "more than chance explains"),
        (
            ROWS,
            [2.0, 1.99, 1.99, 1.98],
            0.3,
            "is wider than all that 3,000 rows gained over 100|follow a power law",
        ),
        (ROWS, [2.4, float("nan"), 2.1, 2.0], 0.1, "a loss is NaN or Inf"),
    ],
)
def test_without_a_good_fit_there_is_no_extrapolation_and_a_sentence_why(rows, losses, spread, reason):
    curve = learning_curve("r=4", rows, groups(losses, spread), resampling=FEW)
    assert curve.extrapolated == () and curve.exponent is None
    assert re.search(reason, curve.why_not)
    assert f"; no extrapolation, since {curve.why_not}." in curve_sentence(curve)


def test_seeds_that_differ_widen_the_interval():
    rng = np.random.default_rng(5)
    steady = groups(law(ROWS), 0.01)
    apart = [
        [[GroupLoss(one.nll + 20 * shift, 20) for one in cell[0]] for shift in rng.normal(0, 0.02, 3)]
        for cell in steady
    ]
    one, several = (learning_curve("r", ROWS, cells, resampling=FEW) for cells in (steady, apart))
    widths = [c.extrapolated[0].high - c.extrapolated[0].low for c in (one, several) if c.extrapolated]
    assert len(widths) == 1 or widths[1] > widths[0]
