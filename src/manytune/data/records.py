"""What a reader hands to a template: rows with the place they came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


class Located:
    """Something that was read from a place; a mix-in for records with `source` and `row`."""

    __slots__ = ()
    source: str
    row: int

    @property
    def where(self) -> str:
        """The place to name in a message, such as `train.jsonl:17`."""
        return f"{self.source}:{self.row}"


@dataclass(frozen=True, slots=True)
class Record(Located):
    """One row of a data file.

    Args:
        fields: The row's values by field name.
        source: The file or dataset as the user named it.
        row: From 1: the line of a text file (the first, for a CSV row of several), else the record's number.
    """

    fields: Mapping[str, object]
    source: str
    row: int


@dataclass(frozen=True, slots=True)
class Rejected(Located):
    """One row that was left out, and why."""

    source: str
    row: int
    reason: str


@dataclass(frozen=True, slots=True)
class Records:
    """All rows of a file: those that can be used, and those that were left out."""

    kept: tuple[Record, ...]
    rejected: tuple[Rejected, ...]
