"""Calibration: whether a classifier is right as often as its probabilities say; from 0, the best, to 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from manytune.errors import DataError
from manytune.evaluation.metrics.base import Described, Floats
from manytune.evaluation.metrics.classification import Accuracy
from manytune.evaluation.results import Answer

BINS = 15


@dataclass(frozen=True, slots=True)
class CalibrationError(Described):
    """The expected calibration error (Guo et al., ICML 2017).

    With the answers in 15 bins of equal width by the probability of the label that was chosen,
    `ECE = Σ n_b/n |accuracy_b - mean probability_b|`. It is biased upwards on few items.
    """

    name: str = "ece"
    label: str = "Calibration error"
    higher_is_better: bool = False

    def statistics(self, answers: Sequence[Answer], references: Sequence[Sequence[str]]) -> Floats:
        """Rows `(1, probability, right)` for each bin; zeros for the bins that an item isn't in.

        Raises:
            DataError: An answer has no probability, or there are too many labels.
        """
        right = Accuracy().scores(answers, references)
        rows = np.zeros((len(answers), 3 * BINS))
        for row, answer, is_right in zip(rows, answers, right, strict=True):
            if answer.confidence is None:
                raise DataError(
                    "ece needs the probability of each answer, which a classifier's head gives and generated text "
                    "doesn't; leave it out of the metrics"
                )
            place = 3 * max(0, min(BINS - 1, int(np.ceil(answer.confidence * BINS)) - 1))
            row[place : place + 3] = 1, answer.confidence, is_right
        return rows

    def aggregate(self, sums: Floats) -> Floats:
        """The error of the summed bins."""
        count, confidence, right = sums[..., 0::3], sums[..., 1::3], sums[..., 2::3]
        result: Floats = np.abs(confidence - right).sum(axis=-1) / count.sum(axis=-1)
        return result

    def signature(self, references: Sequence[Sequence[str]]) -> str:
        """For example `bins:15|width:equal|probability:chosen label`."""
        return f"bins:{BINS}|width:equal|probability:chosen label"
