"""What every metric says about itself.

A metric turns answers into one row of sufficient statistics an item, and sums of such rows into a score.
The score of a test set is `aggregate` of the sum of its rows; the score of a bootstrap sample is
`aggregate` of the sum of the sampled rows. So an average of item scores (ROUGE) and a score of the corpus
as a whole (BLEU) are resampled alike, and the latter exactly: BLEU of a resampled corpus, not a mean of
sentence BLEUs.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def number_of_references(references: Sequence[Sequence[str]]) -> str:
    """The `nrefs` of a signature: a number, or `var` if items differ."""
    counts = {len(texts) for texts in references}
    return str(counts.pop()) if len(counts) == 1 else "var"


def mean(sums: Floats) -> Floats:
    """Mean of item scores, from rows `(score, 1)` summed."""
    result: Floats = sums[..., 0] / sums[..., 1]
    return result


def with_count(scores: Sequence[float]) -> Floats:
    """Rows `(score, 1)`, whose sums `mean` turns into the mean."""
    return np.column_stack([np.asarray(scores, dtype=np.float64), np.ones(len(scores))])
