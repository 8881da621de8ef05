"""What the top of the page says of the experiment: base, data, date, and how each system was trained."""

from __future__ import annotations

from dataclasses import dataclass

from manytune.evaluation.hyperparameters import TITLE
from manytune.evaluation.results import Evaluation

#: What is at the top, in this order, of the facts that an evaluation brings along.
_FACTS = ("Base", "Data", "Rows", "Date", "Training seeds")


@dataclass(frozen=True, slots=True)
class Fact:
    """A line at the top of the page.

    Attributes:
        title: What it is about.
        text: What it says.
        system: The number of the system that it is about; None for all.
    """

    title: str
    text: str
    system: int | None = None


def setup(evaluation: Evaluation) -> list[Fact]:
    """The facts that are known, the experiment's before the systems'."""
    found = [Fact(title, evaluation.provenance[title]) for title in _FACTS if title in evaluation.provenance]
    return found + [
        Fact(result.name, result.provenance[TITLE], number)
        for number, result in enumerate(evaluation.results)
        if TITLE in result.provenance
    ]
