"""Records as JSON files with a format version: written whole, and read only if they are exactly what is expected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from manytune.atomic import atomic_write, explained, make_directory
from manytune.errors import DataError

T = TypeVar("T")


def write_versioned(record: T, path: Path, form: TypeAdapter[T]) -> None:
    """Write a record, whole or not at all; its directory is made if need be."""
    with explained(path):
        make_directory(path.parent)
    atomic_write(path, form.dump_json(record, indent=1) + b"\n")


def read_versioned(path: Path, form: TypeAdapter[T], *, version: int, what: str, remedy: str) -> T:
    """Read what `write_versioned` wrote.

    Args:
        path: The file.
        form: The record's type.
        version: The `format` that it must have.
        what: What the record is, with its article, for messages.
        remedy: What to do if it can't be read.

    Raises:
        DataError: The file can't be read, isn't such a record, or is one of another format version.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"can't be read: {error.strerror}", where=str(path)) from error
    try:
        record = json.loads(content)
    except ValueError as error:
        raise DataError(f"expected JSON: {error}; {remedy}", where=str(path)) from error
    found = record.get("format") if isinstance(record, dict) else None
    if found != version:
        raise DataError(
            f"expected {what} of format {version}, found format {found}; {remedy}", where=str(path)
        )
    try:
        return form.validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DataError(f"not {what}: {place}: {first['msg']}; {remedy}", where=str(path)) from error
