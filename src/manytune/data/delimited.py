"""CSV and TSV: rows may span lines, so each row is named by the line where it starts."""

from __future__ import annotations

import contextlib
import csv
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from manytune.data.records import Record, Rejected
from manytune.data.rendering import shorten
from manytune.data.text import not_utf8, read_utf8_bytes
from manytune.errors import DataError

# Separators of spreadsheets in countries whose numbers have commas, and of exports.
_OTHERS = (";", "\t", "|")
_NAMED = re.compile(r"sep=(.)\r?\n")  # Excel's own first line


def read_csv(path: Path, source: str) -> list[Record | Rejected]:
    """Read comma-separated rows under a header; separated by semicolons, tabs or bars if the header is.

    Raises:
        DataError: The header can't be used, or a quoted field is never closed.
    """
    return _delimited(path, source, None)


def read_tsv(path: Path, source: str) -> list[Record | Rejected]:
    """Read tab-separated rows under a header; quotes mean what they mean in CSV.

    Raises:
        DataError: The header can't be used, or a quoted field is never closed.
    """
    return _delimited(path, source, "\t")


def _delimited(path: Path, source: str, delimiter: str | None) -> list[Record | Rejected]:
    # A byte that isn't UTF-8 becomes a lone surrogate here, so that only its own row is rejected.
    text = read_utf8_bytes(path, source).decode("utf-8", errors="surrogateescape")
    above = 0
    if delimiter is None and (named := _NAMED.match(text)):
        delimiter, text, above = named[1], text[named.end() :], 1
    with _fields_of_any_size():
        delimiter = delimiter or _delimiter_of(text)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        return _rows_under(_header(reader, source), reader, source, above)


def _delimiter_of(text: str) -> str:
    """What separates the header's names: a comma, unless it then names one field and would several with another."""

    def columns(delimiter: str) -> int:
        try:
            return len(next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), []))
        except csv.Error:
            return 0

    return "," if columns(",") > 1 else max((",", *_OTHERS), key=columns)


def _rows_under(header: list[str], reader: Any, source: str, above: int) -> list[Record | Rejected]:
    rows: list[Record | Rejected] = []
    while True:
        line = reader.line_num + 1 + above
        try:
            cells = next(reader)
        except StopIteration:
            return rows
        except csv.Error as error:
            rows.append(_malformed(error, source, line, reader.line_num + above))
        else:
            if cells:  # a blank line isn't a row
                rows.append(_row(header, cells, source, line))


def _header(reader: Iterator[list[str]], source: str) -> list[str]:
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise DataError(f"the header isn't valid: {error}", where=f"{source}:1") from error
    problem = _encoding_problem(header)
    if not header:
        problem = "the first line is blank; it must name the fields"
    for column, name in enumerate(header, start=1):
        if not name.strip():
            problem = (
                f"column {column} of the header has no name (an index column? write the file without it)"
            )
        elif header.count(name) > 1:
            problem = f"the header names {name!r} twice; give each column a name of its own"
    if problem:
        raise DataError(problem, where=f"{source}:1")
    return header


def _row(header: list[str], cells: list[str], source: str, line: int) -> Record | Rejected:
    if problem := _encoding_problem(cells):
        return Rejected(source, line, problem)
    if len(cells) != len(header):
        expected = f"expected {len(header)} cells ({shorten(', '.join(header), 200)})"
        why = "; a cell that has the separator in it is put in quotes" if len(cells) > len(header) else ""
        return Rejected(source, line, f"{expected}, found {len(cells)}{why}")
    return Record(dict(zip(header, cells, strict=True)), source, line)


def _malformed(error: csv.Error, source: str, first: int, last: int) -> Rejected:
    if "unexpected end of data" in str(error):
        # All further rows went into the field; to call that one rejected row would hide how much is lost.
        raise DataError(
            'a quoted field that starts in this row is never closed; close it, and write " within it as ""',
            where=f"{source}:{first}",
        )
    lines = f" (lines {first} to {last} were read as one row)" if last > first else ""
    return Rejected(source, first, f"the row isn't valid CSV: {error}{lines}")


def _encoding_problem(cells: list[str]) -> str | None:
    try:
        "".join(cells).encode("utf-8")
    except UnicodeEncodeError as error:
        return not_utf8(ord(error.object[error.start]) & 0xFF)
    return None


@contextlib.contextmanager
def _fields_of_any_size() -> Iterator[None]:
    """Lift the csv module's limit of 128 KiB a field, which documents exceed; it can only be set globally."""
    previous = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(previous)
