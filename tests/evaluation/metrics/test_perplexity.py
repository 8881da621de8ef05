import math

import pytest
from tests.evaluation.metrics.corpora import said

from manytune.errors import DataError
from manytune.evaluation.metrics import METRICS


def test_perplexity_weighs_tokens_and_not_items():
    answers = [said("x", nll=2.0, nll_tokens=1), said("y", nll=3.0, nll_tokens=9)]
    metric = METRICS["perplexity"]
    statistics = metric.statistics(answers, [["x"], ["y"]])
    assert float(metric.aggregate(statistics.sum(axis=0))) == pytest.approx(math.exp(5 / 10))


def test_perplexity_without_likelihoods_is_an_error_that_names_the_item():
    with pytest.raises(DataError, match=r"item 1 has no likelihood.*leave perplexity out"):
        METRICS["perplexity"].statistics([said("x", nll=1.0, nll_tokens=1), said("y")], [["x"], ["y"]])
