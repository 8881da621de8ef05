"""JSON in answers: reading it, comparing it, and taking it apart into fields."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NoReturn

_DECODER = json.JSONDecoder()


class NotJsonError(ValueError):
    """A text isn't JSON."""


def read_json(text: str) -> Any:
    """Return what a whole text says as JSON; NaN and Infinity aren't JSON.

    Raises:
        NotJsonError: It isn't JSON.
    """
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise NotJsonError(str(error)) from error


def values_in(text: str) -> Iterator[Any]:
    """Yield the outermost JSON objects and lists that a text has in it, in order."""
    place = 0
    while (place := _next_bracket(text, place)) >= 0:
        try:
            value, place = _DECODER.raw_decode(text, place)
        except (ValueError, RecursionError):
            place += 1
        else:
            yield value


def canonical(value: Any) -> str:
    """Return a text that equal JSON values, and only these, have in common.

    The order of keys doesn't matter, and 1 is 1.0 but not true.
    """
    return json.dumps(_plain(value), sort_keys=True, ensure_ascii=False)


def fields_of(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield each value that has no further ones in it: its path, such as `address.city` or `names[0]`, and its text."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from fields_of(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value:
        for place, item in enumerate(value):
            yield from fields_of(item, f"{path}[{place}]")
    else:
        yield path, canonical(value)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _next_bracket(text: str, start: int) -> int:
    found = [place for place in (text.find("{", start), text.find("[", start)) if place >= 0]
    return min(found, default=-1)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} isn't JSON")
