"""Text files are UTF-8: how another encoding is noticed and what is said about it."""

from __future__ import annotations

import codecs
from pathlib import Path

from manytune.errors import DataError


def read_utf8_bytes(path: Path, source: str) -> bytes:
    """Return a text file's bytes without a byte order mark; they may still hold bytes that aren't UTF-8.

    Raises:
        DataError: The file is UTF-16, as spreadsheets write "Unicode text".
    """
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError("the file is UTF-16; save it as UTF-8", where=source)
    return data.removeprefix(codecs.BOM_UTF8)


def not_utf8(byte: int) -> str:
    """Return what is wrong with a row that holds the byte."""
    return f"the byte 0x{byte:02x} isn't UTF-8; save the file as UTF-8"
