import dataclasses

import pytest
from tests.evaluation.report.whole import whole

from manytune.evaluation.report.gains import change_charts, gain_charts, rank_chart


@pytest.fixture(scope="module")
def evaluation():
    return whole()


def test_gains_are_shown_over_parameters_and_seconds(evaluation):
    parameters, seconds = gain_charts(evaluation)
    assert [dot.name for dot in parameters.dots] == ["full", "lora"]
    full, lora = parameters.dots
    assert lora.x < full.x  # fewer parameters
    assert all(dot.high < dot.y < dot.low < parameters.zero for dot in parameters.dots)  # places from the top
    assert [dot.name for dot in seconds.dots] == ["full", "lora"]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [((125.0, 131.0), ["Gain and parameters"]), ((100.0, 125.0), ["Gain and parameters", "Gain and time"])],
)
def test_a_plot_over_the_cost_needs_costs_that_differ(evaluation, seconds, shown):
    base, *trained = evaluation.results
    results = [
        dataclasses.replace(result, cost=dataclasses.replace(result.cost, seconds=one))
        for result, one in zip(trained, seconds, strict=True)
    ]
    alike = dataclasses.replace(evaluation, results=(base, *results))
    assert [chart.title for chart in gain_charts(alike)] == shown
    one_dot = dataclasses.replace(evaluation, results=(base, results[0]))
    assert gain_charts(one_dot) == []


def test_the_plateau_begins_at_the_recommended_rank(evaluation):
    chart = rank_chart(evaluation)
    assert [dot.hollow for dot in chart.dots] == [True, False]
    assert chart.plateau == chart.dots[1].x
    assert [tick.label for tick in chart.x_ticks] == ["r=1", "r=8"]


def test_changes_are_drawn_on_the_side_of_their_sign(evaluation):
    text, questions = change_charts(evaluation)
    assert "lower is better" in text.label
    assert all(bar.start + bar.width == pytest.approx(text.zero) for bar in text.bars)  # perplexity fell
    assert all(bar.low <= bar.high for chart in (text, questions) for bar in chart.bars)
