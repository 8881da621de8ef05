"""Labels that are numbers: what a regression learns, and on which scale."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from manytune.data.templates import Example
from manytune.errors import DataError

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_LARGEST = (
    1e30  # squares of what is learned stay finite in float32 after standardizing, and in float64 before
)


def number_in(text: str) -> float | None:
    """The finite number that a text is, in decimal notation; None if it is none.

    `1e-3` and `.5` are numbers; `1,000`, `NaN`, `inf` and `true` aren't.
    """
    if not _NUMBER.fullmatch(text.strip()):
        return None
    found = float(text)
    return found if abs(found) <= _LARGEST else None


@dataclass(frozen=True)
class Scale:
    """The scale of what a head learns: `(label - mean) / deviation`.

    Attributes:
        mean: In the labels' unit.
        deviation: In the labels' unit; above 0.
    """

    mean: float = 0.0
    deviation: float = 1.0


@dataclass(frozen=True)
class NumericLabels:
    """The labels of a regression, whose head has one output.

    Attributes:
        mean: The training rows' mean, which is the baseline's answer to every text.
        deviation: Their standard deviation (of the population).
        rows: How many there are.
        scale: The scale of what the head learns; mean 0 and deviation 1 for the labels as they are.
    """

    mean: float
    deviation: float
    rows: int
    scale: Scale = Scale()

    #: What the head's output is called.
    names = ("value",)

    def target(self, example: Example) -> float:
        """What the head is to give for an example, on its scale.

        Raises:
            DataError: The label isn't a number.
        """
        found = number_in(example.completion)
        if found is None:
            raise DataError(not_a_number(example.completion), where=example.where)
        return (found - self.scale.mean) / self.scale.deviation

    def value(self, output: float) -> float:
        """The answer in the labels' unit that an output of the head is."""
        return self.scale.mean + self.scale.deviation * output

    def to_dict(self) -> dict[str, Any]:
        """As a manifest holds it."""
        return {
            "task": "regression",
            "mean": self.mean,
            "deviation": self.deviation,
            "rows": self.rows,
            "scale": {"mean": self.scale.mean, "deviation": self.scale.deviation},
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> NumericLabels:
        """Read what `to_dict` wrote.

        Raises:
            DataError: It isn't that.
        """
        scale, rows = content.get("scale"), content.get("rows")
        if isinstance(scale, Mapping) and type(rows) is int:
            found = (content.get("mean"), content.get("deviation"), scale.get("mean"), scale.get("deviation"))
            numbers = [float(one) for one in found if isinstance(one, int | float) and abs(one) <= _LARGEST]
            if len(numbers) == len(found) and numbers[3] > 0:
                return cls(numbers[0], numbers[1], rows, Scale(*numbers[2:]))
        raise DataError(
            "expected a mean, a deviation, a number of rows, and a scale with mean and deviation; found "
            f"{str(content)[:200]}"
        )


def numeric_labels_of(examples: Sequence[Example], scale: Scale | bool = True) -> NumericLabels:
    """The labels of training rows.

    Args:
        examples: At least one.
        scale: What the head learns: true for labels with mean 0 and deviation 1 over these rows, false for the labels
            as they are, or a scale that is given.

    Raises:
        DataError: A label isn't a number, or all are the same.
    """
    plain = NumericLabels(0.0, 1.0, len(examples))
    values = [plain.target(example) for example in examples]
    mean = math.fsum(values) / len(values)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    if min(values) == max(values):
        raise DataError(
            f"every training row has the label {values[0]:g}; a regression needs different ones. Is data.label the "
            "right field?",
            where=examples[0].source,
        )
    if isinstance(scale, bool):
        scale = Scale(mean, deviation) if scale else Scale()
    return NumericLabels(mean, deviation, len(values), scale)


def not_a_number(text: str) -> str:
    """What is wrong with a label."""
    return (
        f"the label {text[:40]!r} isn't a number; task: regression needs a finite one of each row, such as 3.5. "
        "Correct it, or leave such rows out with data.on_error: skip"
    )
