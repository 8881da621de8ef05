"""The sequences that a training reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from manytune.data.encoding.encoded import Encoded, rows_of
from manytune.data.mixing import Mixture


@dataclass(frozen=True, kw_only=True)
class TrainingRows:
    """What a model is trained on.

    A *row* is what one row of the data became: one sequence, or several that go into the same batch, such as the
    answers of a conversation whose template rewrites earlier turns, or documents that are packed together.

    Attributes:
        train: The sequences to learn from; those of a row one after the other.
        validation: The sequences to measure the loss on, before training, while it goes on and at its end; may be
            empty.
        mixture: Which of `train`'s rows an epoch holds, if they are several tasks'; None for all.
        pad_id: Any valid token id; it only fills masked columns.
        by_length: Whether a batch takes rows of similar lengths: a classifier's are padded to the longest.
    """

    train: Sequence[Encoded]
    validation: Sequence[Encoded] = ()
    mixture: Mixture | None = None
    pad_id: int
    by_length: bool = False

    @cached_property
    def rows(self) -> tuple[tuple[Encoded, ...], ...]:
        """The sequences of each row of `train`."""
        return rows_of(self.train)

    @property
    def rows_per_epoch(self) -> int:
        """How many rows one epoch holds."""
        return self.mixture.rows_per_epoch if self.mixture else len(self.rows)

    def sequences(self, rows: Iterable[int]) -> list[Encoded]:
        """The sequences of these rows."""
        return [sequence for row in rows for sequence in self.rows[row]]
