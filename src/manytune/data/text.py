"""Text files are UTF-8, or UTF-16 that says so: how another encoding is noticed and what is said about it."""

from __future__ import annotations

import codecs
from pathlib import Path

from manytune.errors import DataError

TEXT_FILES = (".csv", ".tsv", ".jsonl", ".json")
"""Endings of data files that are text."""


def read_utf8_bytes(path: Path, source: str) -> bytes:
    """Return a text file's bytes without a byte order mark; they may still hold bytes that aren't UTF-8.

    UTF-16 with its mark, as spreadsheets write "Unicode text", is returned as UTF-8.

    Raises:
        DataError: The file begins as UTF-16 and isn't.
    """
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            return data.decode("utf-16").encode()
        except UnicodeDecodeError as error:
            raise DataError(
                f"the file begins as UTF-16 and isn't ({error.reason}); save it as UTF-8", where=source
            ) from None
    return data.removeprefix(codecs.BOM_UTF8)


def require_utf8(path: Path, source: str) -> None:
    """Refuse a text file that has any byte that isn't UTF-8, with how many lines have one.

    Raises:
        DataError: It has.
    """
    lines = read_utf8_bytes(path, source).split(b"\n")
    found = [
        (number, byte)
        for number, line in enumerate(lines, start=1)
        if (byte := _foreign_byte(line)) is not None
    ]
    if found:
        others = f" ({len(found):,} lines have such bytes)" if len(found) > 1 else ""
        command = f"iconv -f WINDOWS-1252 -t UTF-8 {source} > utf8-{path.name}"
        raise DataError(
            f"{not_utf8(found[0][1])}{others}. On a terminal: {command}", where=f"{source}:{found[0][0]}"
        )


def _foreign_byte(line: bytes) -> int | None:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as error:
        return line[error.start]
    return None


def not_utf8(byte: int) -> str:
    """Return what is wrong with a row that holds the byte."""
    try:
        meant = (
            f" ({bytes([byte]).decode('cp1252')!r} in Windows-1252, as Excel writes it)"
            if byte >= 0xA0
            else ""
        )
    except UnicodeDecodeError:
        meant = ""
    return f"the byte 0x{byte:02x} isn't UTF-8{meant}; save the file as UTF-8 (CSV UTF-8 in Excel)"
