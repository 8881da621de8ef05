"""Charts as plain geometry in per cent of their area; the page draws them.

Lines are drawn in an SVG that stretches with the page, and all text is HTML around it, so that a chart is as
legible on a telephone as on a wall.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from manytune.evaluation.metrics import METRICS
from manytune.evaluation.report.axes import Tick, padded, percent, round_values
from manytune.evaluation.results import Evaluation, LossPoint
from manytune.evaluation.wording import interval, score

_MOST_CURVES = 5  # of more systems the training losses would hide each other
_MOST_POINTS = 50  # a batch's loss says little: longer curves are averaged over neighbouring steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A curve of one system; places are `x y` pairs in per cent from the top left."""

    system: int
    name: str
    kind: str
    path: str
    dots: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LineChart:
    """Loss, or a score, over optimizer steps."""

    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]
    summary: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Whisker:
    """One system's score and interval, in per cent from the left."""

    system: int
    name: str
    at: float
    low: float
    high: float
    label: str
    interval: str


@dataclass(frozen=True, slots=True)
class WhiskerChart:
    """The primary metric of every system."""

    label: str
    ticks: tuple[Tick, ...]
    whiskers: tuple[Whisker, ...]


def whisker_chart(evaluation: Evaluation) -> WhiskerChart:
    """Scores and intervals by the primary metric, on an axis that holds all of them."""
    metric = METRICS[evaluation.primary]
    found = [result.score(metric.name) for result in evaluation.results]
    ends = [end for one in found for end in (one.value, one.low, one.high) if end is not None]
    low, high = padded(min(ends), max(ends))
    low, high = max(low, metric.bounds[0]), min(high, metric.bounds[1])
    if high <= low:  # every end is at a bound
        low, high = low - 0.5, high + 0.5
    whiskers = []
    for index, (result, one) in enumerate(zip(evaluation.results, found, strict=True)):
        left, right = (one.value if end is None else end for end in (one.low, one.high))
        at, start, end = (percent(value, low, high) for value in (one.value, left, right))
        whiskers.append(
            Whisker(
                system=index,
                name=result.name,
                at=at,
                low=start,
                high=end,
                label=score(one.value, metric),
                interval=interval(one, metric),
            )
        )
    ticks = tuple(Tick(percent(value, low, high), text) for value, text in round_values(low, high, 4))
    return WhiskerChart(metric.label, ticks, tuple(whiskers))


def loss_chart(evaluation: Evaluation) -> LineChart | None:
    """Training and validation loss of every system that has them; `None` if none has.

    Of many systems the training loss is shown only where there is no validation loss.
    """
    trained = [result for result in evaluation.results if result.curves.training or result.curves.validation]
    curves = [
        (index, result.name, kind, _averaged(points) if kind == "training" else points)
        for index, result in enumerate(evaluation.results)
        for kind, points in (("training", result.curves.training), ("validation", result.curves.validation))
        if points and (kind == "validation" or len(trained) <= _MOST_CURVES or not result.curves.validation)
    ]
    if not curves:
        return None
    return _line_chart(
        [
            (index, name, kind, [(one.step, one.loss) for one in points])
            for index, name, kind, points in curves
        ],
        bounds=(0.0, math.inf),
        summary="; ".join(_in_words(name, kind, points) for _, name, kind, points in curves),
    )


def score_charts(evaluation: Evaluation) -> list[tuple[str, LineChart]]:
    """Each score on validation prompts that was measured while systems trained, with the metric's label."""
    names = dict.fromkeys(name for result in evaluation.results for name in result.curves.scores)
    charts = []
    for metric in (METRICS[name] for name in names if name in METRICS):
        curves = [
            (index, result.name, "validation", [(one.step, one.value) for one in points])
            for index, result in enumerate(evaluation.results)
            if (points := result.curves.scores.get(metric.name))
        ]
        summary = "; ".join(
            f"{name}, {score(points[0][1], metric)} at step {points[0][0]} to {score(points[-1][1], metric)} at step "
            f"{points[-1][0]}"
            for _, name, _, points in curves
        )
        charts.append((metric.label, _line_chart(curves, bounds=metric.bounds, summary=summary)))
    return charts


def _line_chart(
    curves: Sequence[tuple[int, str, str, Sequence[tuple[int, float]]]],
    *,
    bounds: tuple[float, float],
    summary: str,
) -> LineChart:
    """Curves of (system, its name, kind, points), on axes that hold all of them; what isn't finite is left out."""
    values = [value for *_, points in curves for _, value in points if math.isfinite(value)]
    last = max(*(step for *_, points in curves for step, _ in points), 1)
    low, high = padded(min(values, default=0.0), max(values, default=1.0))
    low, high = max(low, bounds[0]), min(high, bounds[1])
    if high <= low:  # every value is at a bound
        low, high = low - 0.5, high + 0.5
    lines = []
    for index, name, kind, points in curves:
        places = tuple(
            (percent(step, 0, last), 100 - percent(value, low, high))
            for step, value in points
            if math.isfinite(value)
        )
        path = " ".join(f"{'L' if place else 'M'}{x:.2f} {y:.2f}" for place, (x, y) in enumerate(places))
        dots = places if kind == "validation" else ()
        lines.append(Line(system=index, name=name, kind=kind, path=path, dots=dots))
    return LineChart(
        x_ticks=tuple(Tick(percent(value, 0, last), text) for value, text in round_values(0, last, 5)),
        y_ticks=tuple(Tick(percent(value, low, high), text) for value, text in round_values(low, high, 5)),
        lines=tuple(lines),
        summary=summary,
    )


def _in_words(name: str, kind: str, points: Sequence[LossPoint]) -> str:
    """What a curve shows, for those who can't see it."""
    first, last = points[0], points[-1]
    return f"{name}, {kind} loss {first.loss:.2f} at step {first.step} to {last.loss:.2f} at step {last.step}"


def _averaged(points: Sequence[LossPoint]) -> Sequence[LossPoint]:
    """At most `_MOST_POINTS` points, each the mean of equally many neighbours."""
    width = math.ceil(len(points) / _MOST_POINTS)
    if width <= 1:
        return points
    parts = [points[start : start + width] for start in range(0, len(points), width)]
    return [LossPoint(part[-1].step, sum(point.loss for point in part) / len(part)) for part in parts]
