"""JSON lines, and files that are one JSON array."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

from manytune.data.records import Record, Rejected
from manytune.data.strict_json import parse
from manytune.data.text import not_utf8, read_utf8_bytes
from manytune.errors import DataError


def read_json_lines(path: Path, source: str) -> list[Record | Rejected]:
    """Read one JSON object a line; blank lines aren't rows.

    Raises:
        DataError: The file is UTF-16.
    """
    lines = enumerate(read_utf8_bytes(path, source).split(b"\n"), start=1)
    return [_line(line, source, number) for number, line in lines if line.strip()]


def read_json(path: Path, source: str) -> list[Record | Rejected]:
    """Read a JSON array of objects, or one object a line.

    Raises:
        DataError: The file is neither.
    """
    data = read_utf8_bytes(path, source)
    if data.lstrip().startswith(b"["):
        return [_record(value, source, row) for row, value in enumerate(_array(data, source), start=1)]
    rows = read_json_lines(path, source)
    if not any(isinstance(row, Record) for row in rows):
        raise DataError("expected an array of objects, or one object a line", where=source)
    return rows


def json_line(record: Record) -> str:
    """Return the line that `read_json_lines` reads as the record's fields; dates become ISO text.

    Raises:
        DataError: A value has no JSON form.
    """
    try:
        return json.dumps(record.fields, ensure_ascii=False, allow_nan=False, default=_iso) + "\n"
    except (TypeError, ValueError) as error:
        raise DataError(f"the row can't be written as JSON: {error}", where=record.where) from error


def _iso(value: object) -> str:
    if isinstance(value, datetime.date | datetime.time):  # a datetime is a date
        return value.isoformat()
    raise TypeError(f"a value of type {type(value).__name__} has no JSON form")


def _array(data: bytes, source: str) -> list[object]:
    try:
        values = parse(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(not_utf8(data[error.start]), where=f"{source}:{line}") from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"the array isn't valid JSON: {error.msg}", where=f"{source}:{error.lineno}"
        ) from error
    except ValueError as error:
        raise DataError(f"the array can't be read: {error}", where=source) from error
    assert isinstance(values, list)  # it begins with "["
    return values


def _line(line: bytes, source: str, number: int) -> Record | Rejected:
    try:
        return _record(parse(line.decode("utf-8")), source, number)
    except UnicodeDecodeError as error:
        return Rejected(source, number, not_utf8(line[error.start]))
    except json.JSONDecodeError as error:
        hint = ""
        if line.lstrip().startswith(b"["):
            hint = ". A file that is one array is named .json"
        elif line.rstrip().endswith(b"},"):
            hint = ". Leave out the commas between the lines, or name a file that is one array .json"
        return Rejected(
            source,
            number,
            f"the line isn't valid JSON: {error.msg.removesuffix(' at')} (column {error.colno}){hint}",
        )
    except ValueError as error:
        return Rejected(source, number, f"the line can't be read: {error}")


def _record(value: object, source: str, row: int) -> Record | Rejected:
    if not isinstance(value, dict):
        found = json.dumps(value, ensure_ascii=False)
        shown = found if len(found) <= 40 else f"{found[:39]}…"
        return Rejected(source, row, f"expected an object with the row's fields, found {shown}")
    return Record(value, source, row)
