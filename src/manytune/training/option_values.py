"""What values the options of optimizers and schedules take, so that a recipe is refused before a model is loaded."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class OptionValue:
    """The values of one option.

    Attributes:
        words: What is expected, as messages say it.
        accepts: Whether a value is one.
    """

    words: str
    accepts: Callable[[object], bool]


def _is_number(value: object, least: float, below: float) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and least <= value < below  # type: ignore[arg-type, operator]


def number(least: float = -math.inf, *, below: float = math.inf) -> OptionValue:
    """A number in a range."""
    if below < math.inf:
        words = f"a number from {least:g} to less than {below:g}"
    else:
        words = "a number" if least == -math.inf else f"a number of at least {least:g}"
    return OptionValue(words, lambda value: _is_number(value, least, below))


def whole(least: int) -> OptionValue:
    """A whole number, however it is written."""
    return OptionValue(
        f"a whole number of at least {least}",
        lambda value: _is_number(value, least, math.inf) and value == int(value),  # type: ignore[call-overload]
    )


def numbers(count: int, example: str, *, below: float = math.inf) -> OptionValue:
    """A list of numbers from 0."""
    range_ = "of at least 0" if below == math.inf else f"from 0 to less than {below:g}"
    return OptionValue(
        f"a list of {count} numbers {range_}, such as {example}",
        lambda value: (
            isinstance(value, list)
            and len(value) == count
            and all(_is_number(one, 0, below) for one in value)
        ),
    )


def choice(*names: str) -> OptionValue:
    """One of some names."""
    return OptionValue(f"one of {', '.join(names)}", lambda value: value in names)


def or_nothing(value: OptionValue) -> OptionValue:
    """The same, or null."""
    return OptionValue(f"{value.words}, or null", lambda found: found is None or value.accepts(found))


SWITCH = OptionValue("true or false", lambda value: isinstance(value, bool))
