"""The sequences that a training reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from manytune.data.encoded import Encoded
from manytune.data.mixing import Mixture


@dataclass(frozen=True, kw_only=True)
class TrainingRows:
    """What a model is trained on.

    Attributes:
        train: The sequences to learn from.
        validation: The sequences to measure the loss on, before training, while it goes on and at its end; may be
            empty.
        mixture: Which of `train`'s rows an epoch holds, if they are several tasks'; None for all.
        pad_id: Any valid token id; it only fills masked columns.
    """

    train: Sequence[Encoded]
    validation: Sequence[Encoded] = ()
    mixture: Mixture | None = None
    pad_id: int

    @property
    def rows_per_epoch(self) -> int:
        """How many rows one epoch holds."""
        return self.mixture.rows_per_epoch if self.mixture else len(self.train)
