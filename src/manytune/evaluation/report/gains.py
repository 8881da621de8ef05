"""What a gain cost, the effect of rank, and what was forgotten: the geometry of these charts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from manytune.evaluation.metrics import METRICS
from manytune.evaluation.plateau import ALPHA
from manytune.evaluation.quantities import count, seconds
from manytune.evaluation.ranks import RankPoint
from manytune.evaluation.report.axes import Axis, Tick, linear, logarithmic, short
from manytune.evaluation.results import Comparison, Evaluation
from manytune.evaluation.wording import asked_sentence, difference_interval, score, signed

#: What the most expensive system has to cost compared with the cheapest, for a plot over the cost to show anything.
_LEAST_RATIO = 1.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    """One system in a chart; places in per cent from the left and from the top.

    Attributes:
        system: Its number, which decides its colour.
        name: What it is called.
        x: Its place from the left.
        y: Its place from the top.
        low: The lower end of its interval, from the top.
        high: The upper end.
        label: What it shows, in words.
        hollow: Whether it is drawn as a ring.
    """

    system: int
    name: str
    x: float
    y: float
    low: float
    high: float
    label: str
    hollow: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Scatter:
    """Points over two axes.

    Attributes:
        title: What it shows.
        x_label: What the horizontal axis shows.
        x_ticks: Its ticks.
        y_ticks: The vertical axis's.
        dots: The points.
        zero: The place of no gain, from the top; None if it isn't within the axis.
        path: A line through the points; empty for none.
        plateau: Where the plateau begins, from the left; None without one.
        summary: What it shows, for those who can't see it.
    """

    title: str
    x_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    dots: tuple[Dot, ...]
    zero: float | None
    summary: str
    path: str = ""
    plateau: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeBar:
    """How one system changed on a probe; places in per cent from the left."""

    system: int
    name: str
    start: float
    width: float
    low: float
    high: float
    value: str
    change: str
    interval: str
    verdict: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeChart:
    """How every system changed on a probe; the base is the zero line."""

    name: str
    description: str
    label: str
    base: str
    zero: float
    ticks: tuple[Tick, ...]
    bars: tuple[ChangeBar, ...]


def gain_charts(evaluation: Evaluation) -> list[Scatter]:
    """Gain over the baseline by trained parameters and by seconds, where these are known and differ between systems."""
    costs = [result.cost for result in evaluation.results]
    parameters = {n: float(cost.trainable_params) for n, cost in enumerate(costs) if cost.trainable_params}
    times = {n: cost.seconds for n, cost in enumerate(costs) if cost.seconds}
    charts = []
    for title, label, places in (
        ("Gain and parameters", "trained parameters", parameters),
        ("Gain and time", "seconds of training", times),
    ):
        places.pop(0, None)  # the baseline isn't trained
        if places and max(places.values()) >= _LEAST_RATIO * min(places.values()):
            charts.append(_gain_chart(evaluation, title, label, places))
    return charts


def rank_chart(evaluation: Evaluation) -> Scatter | None:
    """Validation loss by trained parameters, with the plateau; None without a sweep."""
    sweep = evaluation.sweep
    if sweep is None:
        return None
    numbers = {result.name: number for number, result in enumerate(evaluation.results)}
    losses = [loss for point in sweep.points for loss in (*point.seed_losses, point.validation_loss)]
    y = linear(min(losses), max(losses), about=4)
    by_rows = bool(sweep.curves)
    sizes = [float(point.rows or 1 if by_rows else point.trainable_params) for point in sweep.points]
    several = len({point.targets for point in sweep.points}) > 1
    ticks = {size: short(size) for size in sizes} if by_rows else None
    if not by_rows and not several:
        ticks = {float(p.trainable_params): f"r={p.rank}" for p in sweep.points}
    x = logarithmic(min(sizes), max(sizes), ticks)
    dots = tuple(
        _rank_dot(point, numbers[point.system], x.at(size), y)
        for point, size in zip(sweep.points, sizes, strict=True)
    )
    if by_rows:
        path = " ".join(
            _through([dot for dot in dots if dot.name.startswith(f"{c.label} on ")]) for c in sweep.curves
        )
    else:
        path = "" if several else _through(dots)
    return Scatter(
        title="Validation loss by rows and rank" if by_rows else "Validation loss by rank",
        x_label="training rows" if by_rows else "trained parameters" if several else "rank",
        x_ticks=x.ticks,
        y_ticks=y.ticks,
        dots=dots,
        zero=None,
        summary=_summary(dots),
        path=path,
        plateau=None if by_rows else next(dot for dot in dots if dot.name == sweep.recommended).x,
    )


def _through(dots: Sequence[Dot]) -> str:
    """A line through dots."""
    return " ".join(f"{'L' if n else 'M'}{dot.x} {dot.y}" for n, dot in enumerate(dots))


def change_charts(evaluation: Evaluation) -> list[ChangeChart]:
    """How every system changed on each probe, in the order of the tables."""
    numbers = {result.name: number for number, result in enumerate(evaluation.results)}
    charts = []
    for probe in evaluation.forgetting:
        inner = probe.evaluation
        metric = METRICS[inner.primary]
        base, *others = inner.results
        found = [inner.comparison(result.name, metric.name) for result in others]
        if not found:
            continue
        ends = [end for one in found for end in (one.low, one.high, one.difference) if end is not None]
        finite = [0.0, *(end for end in ends if math.isfinite(end))]
        axis = linear(min(finite), max(finite), about=3)
        bars = [
            _change_bar(one, result.score(metric.name).value, numbers[one.system], axis)
            for one, result in zip(found, others, strict=True)
        ]
        charts.append(
            ChangeChart(
                name=probe.name,
                description=asked_sentence(probe),
                label=metric.label + ("" if metric.higher_is_better else ", lower is better"),
                base=score(base.score(metric.name).value, metric),
                zero=axis.at(0.0),
                ticks=axis.ticks,
                bars=tuple(bars),
            )
        )
    return charts


def _rank_dot(point: RankPoint, number: int, x: float, y: Axis) -> Dot:
    worse = point.p_value is not None and point.p_value < ALPHA
    words = "significantly worse than the best" if worse else "not significantly worse than the best"
    return Dot(
        system=number,
        name=point.system,
        x=x,
        y=100 - y.at(point.validation_loss),
        low=100 - y.at(min(point.seed_losses)),
        high=100 - y.at(max(point.seed_losses)),
        label=f"validation loss {point.validation_loss:.3f}, {words}",
        hollow=worse,
    )


def _change_bar(found: Comparison, value: float, number: int, axis: Axis) -> ChangeBar:
    metric = METRICS[found.metric]
    zero, end = axis.at(0.0), axis.at(found.difference)
    return ChangeBar(
        system=number,
        name=found.system,
        start=min(zero, end),
        width=round(abs(end - zero), 2),
        low=end if found.low is None else axis.at(found.low),
        high=end if found.high is None else axis.at(found.high),
        value=score(value, metric),
        change=signed(found.difference, metric),
        interval=difference_interval(found, metric),
        verdict=found.verdict,
    )


def _gain_chart(evaluation: Evaluation, title: str, label: str, places: dict[int, float]) -> Scatter:
    metric = METRICS[evaluation.primary]
    sign = 1 if metric.higher_is_better else -1
    found = {n: evaluation.comparison(evaluation.results[n].name, metric.name) for n in places}
    ends = [0.0] + [
        sign * end
        for one in found.values()
        for end in (one.difference, one.low, one.high)
        if end is not None and math.isfinite(end)
    ]
    y = linear(min(ends), max(ends), about=4)
    x = _scale(list(places.values()))
    dots = []
    for number, place in places.items():
        one = found[number]
        spent = count(round(place)) if "parameters" in label else seconds(place)
        dots.append(
            Dot(
                system=number,
                name=one.system,
                x=x.at(place),
                y=100 - y.at(sign * one.difference),
                low=100 - y.at(sign * (one.difference if one.low is None else one.low)),
                high=100 - y.at(sign * (one.difference if one.high is None else one.high)),
                label=f"{signed(one.difference, metric)} {metric.label} with {spent}",
            )
        )
    return Scatter(
        title=title,
        x_label=label,
        x_ticks=x.ticks,
        y_ticks=y.ticks,
        dots=tuple(dots),
        zero=100 - y.at(0.0),
        summary=_summary(dots),
    )


def _summary(dots: Sequence[Dot]) -> str:
    """What a chart shows, for those who can't see it."""
    return "; ".join(f"{dot.name}: {dot.label}" for dot in dots)


def _scale(values: list[float]) -> Axis:
    """Ratios where values are far apart, differences where they are near each other."""
    if max(values) / min(values) > 5:
        return logarithmic(min(values), max(values))
    axis = linear(min(values), max(values), about=4)
    whole = {round(value): short(value) for value in _between(axis)}
    return Axis(axis.low, axis.high, False, tuple(Tick(axis.at(v), text) for v, text in whole.items()))


def _between(axis: Axis) -> list[float]:
    return [axis.low + (axis.high - axis.low) * tick.at / 100 for tick in axis.ticks]
