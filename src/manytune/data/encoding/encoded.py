"""Token ids of examples."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from manytune.data.records import Rejected


@dataclass(frozen=True)
class Encoded:
    """Token ids of one sequence: the input is `prompt_ids + completion_ids`, the labels are `completion_ids`.

    Args:
        prompt_ids: What the model is given. Bears no loss. Never empty.
        completion_ids: What the model learns to answer, the end token included; of a conversation, everything from the
            first answer to the last.
        source: The file or dataset that the row came from.
        row: Its line or record number, from 1.
        group: The example's group, or its place if it has several sequences, or `None`.
        given: Ranges of `completion_ids` that bear no loss, in order: what is between two answers.
        follows: Whether it goes into the same batch as the sequence before it: another answer of the same
            conversation, or a document that is packed with it.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    source: str
    row: int
    group: str | None = None
    given: tuple[tuple[int, int], ...] = ()
    follows: bool = False

    @property
    def targets(self) -> int:
        """How many tokens bear the loss."""
        return len(self.completion_ids) - sum(end - start for start, end in self.given)

    @property
    def input_ids(self) -> tuple[int, ...]:
        """The whole sequence."""
        return self.prompt_ids + self.completion_ids

    @property
    def content(self) -> str:
        """What it makes a model learn, as a text: what a resumed run must find unchanged."""
        more = f"{self.given}{self.follows}" if self.given or self.follows else ""
        return f"{self.prompt_ids}{self.completion_ids}{more}"


@dataclass(frozen=True)
class EncodedSet:
    """Many encoded examples, which were left out for their length, and how many were shortened.

    Attributes:
        kept: The sequences, those of one example one after the other.
        dropped: Examples that are too long.
        truncated: How many examples were shortened: a prompt cut, or turns dropped.
        turns_dropped: How many answers of conversations aren't learned for that.
    """

    kept: tuple[Encoded, ...]
    dropped: tuple[Rejected, ...]
    truncated: int
    turns_dropped: int = 0


def rows_of(sequences: Iterable[Encoded]) -> tuple[tuple[Encoded, ...], ...]:
    """Return the sequences in rows: each with those that follow it."""
    rows: list[list[Encoded]] = []
    for sequence in sequences:
        if sequence.follows and rows:
            rows[-1].append(sequence)
        else:
            rows.append([sequence])
    return tuple(map(tuple, rows))
