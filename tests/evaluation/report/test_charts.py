import dataclasses

import pytest
from tests.evaluation import invented

from manytune.evaluation.evaluate import System, evaluate
from manytune.evaluation.metrics import METRICS
from manytune.evaluation.report.charts import loss_chart, score_charts, whisker_chart
from manytune.evaluation.resampling import Resampling
from manytune.evaluation.results import Answer, Curves, Item, LossPoint, ScorePoint

FEW = Resampling(resamples=9)


def with_curves(*curves):
    asked = invented.items(2)
    systems = [
        System(f"s{place}", "lora", invented.answers(asked, 0.5, place, 2.0), curves=one)
        for place, one in enumerate(curves)
    ]
    return evaluate(asked, systems, [METRICS["rouge1"]], resampling=Resampling(resamples=20))


def points(*pairs):
    return tuple(LossPoint(step, loss) for step, loss in pairs)


def test_places_are_in_per_cent_of_a_range_that_holds_all_points():
    chart = loss_chart(with_curves(Curves(points((0, 3.0), (10, 1.0)), points((10, 2.0)))))
    training, validation = chart.lines
    # Losses 1 to 3 with 8% of air at each end: 0.84 to 3.16.
    assert training.path == "M0.00 6.90 L100.00 93.10"
    assert validation.dots == ((100.0, 50.0),)
    assert [tick.label for tick in chart.y_ticks] == ["1.0", "1.5", "2.0", "2.5", "3.0"]
    assert [(tick.label, tick.at) for tick in chart.x_ticks] == [(str(n), n * 10.0) for n in range(0, 11, 2)]


def test_long_training_curves_are_averaged_and_keep_their_ends():
    flat = points(*((step, float(step % 2)) for step in range(1, 1601)))
    (line,) = loss_chart(with_curves(Curves(training=flat))).lines
    assert line.path.count("L") == 49
    assert line.path.split("L")[-1].strip().startswith("100.00 ")
    assert {pair.split()[1] for pair in line.path[1:].split(" L")} == {line.path.split()[1]}


def test_a_loss_that_is_not_finite_is_left_out_of_the_line():
    chart = loss_chart(with_curves(Curves(validation=points((1, 2.0), (2, float("inf")), (3, 1.0)))))
    assert len(chart.lines[0].dots) == 2


def test_of_many_systems_only_validation_losses_are_drawn_where_there_are_any():
    both, training = Curves(points((1, 2.0)), points((1, 2.0))), Curves(points((1, 2.0)))
    assert len(loss_chart(with_curves(*[both] * 5)).lines) == 10
    chart = loss_chart(with_curves(*[both] * 5, training))
    assert [line.kind for line in chart.lines] == ["validation"] * 5 + ["training"]


def test_without_curves_there_is_no_chart():
    assert loss_chart(with_curves(Curves())) is None


@pytest.mark.parametrize("pairs", [[(1, 2.0)], [(5, 0.0), (9, 0.0)]])
def test_flat_and_single_point_curves_are_drawn(pairs):
    chart = loss_chart(with_curves(Curves(validation=points(*pairs))))
    assert len(chart.y_ticks) >= 2
    assert all(0 <= y <= 100 for _, y in chart.lines[0].dots)


def test_whiskers_hold_their_points_and_stay_on_the_axis():
    chart = whisker_chart(invented.evaluation())
    assert chart.label == "ROUGE-1"
    assert [whisker.name for whisker in chart.whiskers] == ["base", "full", "lora"]
    for whisker in chart.whiskers:
        assert 0 <= whisker.low <= whisker.at <= whisker.high <= 100
    assert len(chart.ticks) >= 3


def test_whiskers_without_an_interval_or_variation_are_points():
    asked = [Item("p", ("a",), "s", 1)]
    perplexed = System("base", "base", (Answer("a", 1, "stop", 2.0, 2),))
    (whisker,) = whisker_chart(evaluate(asked, [perplexed], [METRICS["perplexity"]], resampling=FEW)).whiskers
    assert whisker.low == whisker.at == whisker.high
    assert whisker.interval == "no interval"


def test_the_axis_does_not_leave_the_metrics_bounds():
    evaluation = invented.evaluation(metrics=("exact_match",), among=None)
    zero = dataclasses.replace(evaluation.results[0].scores[0], value=0.0, low=0.0, high=0.0)
    same = tuple(dataclasses.replace(result, scores=(zero,)) for result in evaluation.results)
    chart = whisker_chart(dataclasses.replace(evaluation, results=same))
    assert all(0 <= whisker.at <= 100 for whisker in chart.whiskers)


def test_scores_while_training_have_a_chart_a_metric():
    scored = Curves(
        scores={"rouge1": (ScorePoint(0, 0.0), ScorePoint(10, 1.0)), "bleu": (ScorePoint(10, 5.0),)}
    )
    charts = dict(score_charts(with_curves(scored, Curves())))
    assert list(charts) == ["ROUGE-1", "BLEU"]
    assert charts["ROUGE-1"].lines[0].dots == ((0.0, 100.0), (100.0, 0.0))  # from bound to bound
    assert charts["ROUGE-1"].summary == "s0, 0.000 at step 0 to 1.000 at step 10"
    assert score_charts(with_curves(Curves())) == []
