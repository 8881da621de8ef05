"""Axes of the report's charts: padded ranges, positions in per cent, round ticks."""

from __future__ import annotations

import math
from dataclasses import dataclass

from manytune.evaluation.wording import MINUS


@dataclass(frozen=True, slots=True)
class Tick:
    """A labelled place on an axis, in per cent from its origin."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Axis:
    """A range and its ticks.

    Attributes:
        low: The value at the origin.
        high: The value at the end.
        logarithmic: Whether equal distances are equal ratios.
        ticks: Labelled places.
    """

    low: float
    high: float
    logarithmic: bool
    ticks: tuple[Tick, ...]

    def at(self, value: float) -> float:
        """A value's place in per cent from the origin; values outside are put at an end."""
        if self.logarithmic:
            place = percent(math.log(value), math.log(self.low), math.log(self.high))
        else:
            place = percent(value, self.low, self.high)
        return min(max(place, 0.0), 100.0)


def linear(low: float, high: float, *, about: int) -> Axis:
    """An axis from below `low` to above `high` with about so many ticks."""
    start, end = padded(low, high)
    ticks = tuple(Tick(percent(value, start, end), text) for value, text in round_values(start, end, about))
    return Axis(start, end, False, ticks)


def logarithmic(low: float, high: float, values: dict[float, str] | None = None) -> Axis:
    """An axis of ratios for values above 0, with ticks at powers of ten or at the values given."""
    start, end = low / (high / low) ** 0.08, high * (high / low) ** 0.08
    if start == end:
        start, end = low / 2, high * 2
    if values is None:
        powers = range(math.ceil(math.log10(start)), math.floor(math.log10(end)) + 1)
        values = {10.0**power: short(10.0**power) for power in powers}
        if len(values) < 2:
            values = {low: short(low), high: short(high)}
    axis = Axis(start, end, True, ())
    return Axis(start, end, True, tuple(Tick(axis.at(value), text) for value, text in values.items()))


def short(value: float) -> str:
    """A large number in few characters: `950`, `12k`, `1.2M`."""
    value = float(f"{value:.3g}")  # so that 999.9 is 1k
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def padded(low: float, high: float) -> tuple[float, float]:
    """A range with a margin at both ends, and never an empty one."""
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 0.5
    return low - margin, high + margin


def percent(value: float, low: float, high: float) -> float:
    """A value's place in a range, from 0 to 100."""
    return round(100 * (value - low) / (high - low), 2)


def round_values(low: float, high: float, about: int) -> list[tuple[float, str]]:
    """Round values between two ends, with as many decimals as they need."""
    raw = (high - low) / about
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = min((1.0, 2.0, 5.0, 10.0), key=lambda factor: abs(factor * magnitude - raw)) * magnitude
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    first = math.ceil(low / step - 1e-9)
    values = [place * step for place in range(first, math.floor(high / step + 1e-9) + 1)]
    return [(value, f"{value:.{decimals}f}".replace("-", MINUS)) for value in values]
