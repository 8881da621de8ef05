"""Text files are UTF-8, or UTF-16 that says so: how another encoding is noticed and what is said about it."""

from __future__ import annotations

import codecs
from pathlib import Path

from manytune.errors import DataError


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
    return f"the byte 0x{byte:02x} isn't UTF-8{meant}; save the file as UTF-8"
