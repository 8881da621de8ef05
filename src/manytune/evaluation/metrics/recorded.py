"""Scores that came with answers, such as lm-evaluation-harness's own: nothing is computed here but their mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from manytune.errors import DataError
from manytune.evaluation.metrics.base import MeanOfItems
from manytune.evaluation.results import Answer

RECORDED = "recorded"
"""The metric's name."""


@dataclass(frozen=True, slots=True)
class Recorded(MeanOfItems):
    """The mean of the scores that the answers came with, each from 0 to 1."""

    name: str = RECORDED
    label: str = "Recorded score"

    def scores(self, answers: Sequence[Answer], references: Sequence[Sequence[str]]) -> Sequence[float]:
        """Each answer's own.

        Raises:
            DataError: An answer came without a score.
        """
        found = [answer.score for answer in answers if answer.score is not None]
        if len(found) < len(answers):
            raise DataError(
                f"`recorded` is for answers that came with scores, and {len(answers) - len(found)} of "
                f"{len(answers)} have none; score them with other metrics"
            )
        return found

    def signature(self, references: Sequence[Sequence[str]]) -> str:
        """`source:answers`: how they were made is known where the answers come from."""
        return "source:answers"
