"""Estimates as ranges: what is expected, and what it may well be."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """An estimate.

    Attributes:
        low: What it is if everything goes well.
        expected: The best guess.
        high: What it is if everything goes badly.
    """

    low: float
    expected: float
    high: float

    @staticmethod
    def exactly(value: float) -> Range:
        """A value that follows from sizes alone."""
        return Range(value, value, value)

    def __add__(self, other: Range) -> Range:
        return Range(self.low + other.low, self.expected + other.expected, self.high + other.high)

    def __mul__(self, factor: float) -> Range:
        return Range(self.low * factor, self.expected * factor, self.high * factor)

    def __truediv__(self, divisor: float) -> Range:
        return self * (1 / divisor)


@dataclass(frozen=True)
class Utilization:
    """The share of what a device could do that is reached.

    Attributes:
        best: If everything goes well.
        expected: The best guess.
        worst: If everything goes badly.
    """

    best: float
    expected: float
    worst: float

    def seconds(self, work: float, speed: float) -> Range:
        """How long work takes at this share of a speed."""
        ideal = work / speed
        return Range(ideal / self.best, ideal / self.expected, ideal / self.worst)


def longer(first: Range, second: Range) -> Range:
    """The longer of two times that pass together, such as computing and reading memory."""
    return Range(
        max(first.low, second.low), max(first.expected, second.expected), max(first.high, second.high)
    )


def total(ranges: Iterable[Range]) -> Range:
    """The sum."""
    return sum(ranges, Range(0, 0, 0))
