"""How the values of a recipe's data section may be written, and what is said of others."""

from __future__ import annotations

import datetime
import json
from typing import Annotated

from pydantic import BeforeValidator

from manytune.data.encoding.encoding_options import EncodingOptions
from manytune.data.section import kind_of


def as_names(value: object) -> object:
    """A file or a list of files, as a tuple."""
    names = (value,) if isinstance(value, str) else value
    if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
        return tuple(names)
    raise ValueError(f"expected a file or a datasets name, or a list of them; found {kind_of(value)}")


Files = Annotated[tuple[str, ...], BeforeValidator(as_names)]


def names_or_null(value: object) -> object:
    """A list of names as a tuple, or None."""
    if value is None:
        return None
    if isinstance(value, list | tuple) and value and all(isinstance(name, str) for name in value):
        return tuple(value)
    raise ValueError(f"expected a list of names, or null for all; found {kind_of(value)}")


def as_fields(value: object) -> object:
    """A field or a list of fields, as a tuple."""
    names = (value,) if isinstance(value, str) else value
    if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
        return tuple(names)
    raise ValueError(f"expected a field's name, or a list of them; found {kind_of(value)}")


def rows_or_share(value: object) -> object:
    """A file, a share, or None."""
    if value is None or isinstance(value, str) or (isinstance(value, float) and 0 < value < 1):
        return value
    raise ValueError(
        f"expected a file, a datasets name, or a share between 0 and 1 (null for none); found {kind_of(value)}"
    )


def auto_or_bool(value: object) -> object:
    """`auto`, true or false."""
    if value == "auto" or isinstance(value, bool):
        return value
    raise ValueError(f"expected auto, true or false; found {kind_of(value)}")


def json_values(value: object) -> object:
    """Values by name, as far as JSON can hold them."""
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"expected a section of names and values; found {kind_of(value)}")
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected what JSON can hold: {error}") from error
    return value


def iso_date(value: object) -> object:
    """A date as ISO text, or None."""
    # YAML reads 2026-01-31 as a date.
    text = value.isoformat() if isinstance(value, datetime.date) else value
    if text is None:
        return None
    if not isinstance(text, str):
        raise ValueError(f"expected a date such as 2026-01-31, or null; found {kind_of(value)}")
    EncodingOptions(date=text)
    return text


Rows = Annotated[float | str | None, BeforeValidator(rows_or_share)]
References = Annotated[tuple[str, ...], BeforeValidator(as_fields)]
