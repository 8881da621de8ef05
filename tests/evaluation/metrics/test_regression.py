"""Errors and correlations of numbers; expected values by hand, and from scipy."""

import numpy as np
import pytest
from scipy import stats

from manytune.errors import DataError
from manytune.evaluation.metrics import METRICS, NUMBER_METRICS
from manytune.evaluation.resampling import Resampling
from manytune.evaluation.results import Answer
from manytune.evaluation.significance import bootstrap_interval

RIGHT = [1.0, 2.0, 3.0, 6.0]
SAID = [1.0, 4.0, 3.0, 5.0]


def rows(name, said=SAID, right=RIGHT):
    answers = [Answer(f"{one:.9g}", 1, "stop") for one in said]
    return METRICS[name].statistics(answers, [[f"{one:.9g}"] for one in right])


def total(name, *values):
    return float(METRICS[name].aggregate(rows(name, *values).sum(axis=0)))


def test_errors_are_in_the_labels_unit():
    assert total("rmse") == pytest.approx((5 / 4) ** 0.5)  # 0, 2, 0, 1
    assert total("mae") == pytest.approx(3 / 4)


def test_correlations_are_scipy_s_with_ties_too():
    draw = np.random.default_rng(3)
    said = np.round(draw.normal(size=60), 1)
    right = np.round(said + draw.normal(size=60), 1) * 1000
    assert total("pearson", said, right) == pytest.approx(stats.pearsonr(said, right)[0], abs=1e-9)
    assert total("spearman", said, right) == pytest.approx(stats.spearmanr(said, right)[0], abs=1e-9)


@pytest.mark.parametrize("name", ["pearson", "spearman"])
@pytest.mark.parametrize("mean", [0.1, 123456.7])
def test_the_same_answer_to_everything_correlates_with_nothing(name, mean):
    assert total(name, [mean] * 4) == 0.0
    assert total(name, SAID, [mean] * 4) == 0.0


def test_spearman_s_interval_is_that_of_resampled_ranks():
    """An independent bootstrap ranks every sample again; the two agree where the correlation is far from its bounds."""
    draw = np.random.default_rng(5)
    said = draw.normal(size=300)
    right = said + draw.normal(size=300)
    found = bootstrap_interval(
        METRICS["spearman"].aggregate, rows("spearman", said, right), bounds=(-1, 1), resampling=Resampling()
    )
    samples = draw.integers(300, size=(600, 300))
    again = [stats.spearmanr(said[one], right[one])[0] for one in samples]
    assert found is not None
    assert (found.low, found.high) == pytest.approx(np.quantile(again, [0.025, 0.975]), abs=0.015)


@pytest.mark.parametrize("name", NUMBER_METRICS)
def test_an_answer_that_is_no_number_is_named(name):
    with pytest.raises(DataError, match=rf"{name} needs numbers, and the answer of item 2 is 'about 3'"):
        METRICS[name].statistics([Answer("3", 1, "stop"), Answer("about 3", 2, "stop")], [["1"], ["2"]])
