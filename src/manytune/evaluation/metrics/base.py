"""What every metric says about itself.

A metric turns answers into one row of sufficient statistics an item, and sums of such rows into a score.
The score of a test set is `aggregate` of the sum of its rows; the score of a bootstrap sample is
`aggregate` of the sum of the sampled rows. So an average of item scores (ROUGE) and a score of the corpus
as a whole (BLEU) are resampled alike, and the latter exactly: BLEU of a resampled corpus, not a mean of
sentence BLEUs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from manytune.evaluation.results import Answer

Floats = NDArray[np.float64]


class Metric(Protocol):
    """The contract. Metrics hold no state; none of the methods changes anything."""

    @property
    def name(self) -> str:
        """What commands and files call it, such as `rouge1`."""

    @property
    def label(self) -> str:
        """What tables call it, such as `ROUGE-1`."""

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest possible score."""

    @property
    def higher_is_better(self) -> bool:
        """Which direction is good."""

    @property
    def digits(self) -> int:
        """Decimals to show."""

    def statistics(self, answers: Sequence[Answer], references: Sequence[Sequence[str]]) -> Floats:
        """One row of sufficient statistics an item, `[n, k]`.

        Args:
            answers: One an item.
            references: For each item, one or more right answers.
        """

    def aggregate(self, sums: Floats) -> Floats:
        """Scores of sums of rows: `[..., k]` to `[...]`."""

    def signature(self, references: Sequence[Sequence[str]]) -> str:
        """How the score is computed, in the manner of sacrebleu: `key:value|key:value`."""


@dataclass(frozen=True, slots=True)
class Described:
    """What a metric says about itself, see `Metric`; by default a share, shown with three decimals."""

    name: str
    label: str
    bounds: tuple[float, float] = (0.0, 1.0)
    higher_is_better: bool = True
    digits: int = 3


@dataclass(frozen=True, slots=True)
class MeanOfItems(Described, ABC):
    """A metric that is the mean of every item's score."""

    @abstractmethod
    def scores(self, answers: Sequence[Answer], references: Sequence[Sequence[str]]) -> Sequence[float]:
        """Each item's score."""

    def statistics(self, answers: Sequence[Answer], references: Sequence[Sequence[str]]) -> Floats:
        """Rows `(score, 1)`."""
        scores = self.scores(answers, references)
        return np.column_stack([np.asarray(scores, dtype=np.float64), np.ones(len(scores))])

    def aggregate(self, sums: Floats) -> Floats:
        """The mean."""
        result: Floats = sums[..., 0] / sums[..., 1]
        return result


def number_of_references(references: Sequence[Sequence[str]]) -> str:
    """The `nrefs` of a signature: a number, or `var` if items differ."""
    counts = {len(texts) for texts in references}
    return str(counts.pop()) if len(counts) == 1 else "var"
