"""What a reader hands to a template: rows with the place they came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a data file.

    Args:
        fields: The row's values by field name.
        source: The file or dataset as the user named it.
        row: From 1: the line of a text file (the first, for a CSV row of several), else the record's number.
    """

    fields: Mapping[str, object]
    source: str
    row: int

    @property
    def where(self) -> str:
        """The place to name in a message, such as `train.jsonl:17`."""
        return f"{self.source}:{self.row}"


@dataclass(frozen=True, slots=True)
class Rejected:
    """One row that was left out, and why."""

    source: str
    row: int
    reason: str

    @property
    def where(self) -> str:
        """The place to name in a message, such as `train.jsonl:17`."""
        return f"{self.source}:{self.row}"


@dataclass(frozen=True, slots=True)
class Records:
    """All rows of a file: those that can be used, and those that were left out."""

    kept: tuple[Record, ...]
    rejected: tuple[Rejected, ...]
