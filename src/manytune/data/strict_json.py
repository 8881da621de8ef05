"""JSON, read strictly: what Python's parser lets pass but no tokenizer can use is an error."""

from __future__ import annotations

import json
from typing import Any, NoReturn

#: More than any row has; what reads a value level by level, as templates do, doesn't get through many more.
_MOST_LEVELS = 500
_TOO_DEEP = f"it has too many levels within one another (at most {_MOST_LEVELS})"


def parse(text: str) -> Any:
    """Return what JSON text says.

    Raises:
        ValueError: It isn't JSON, has a key twice, NaN or half a character, or more than 500 levels.
    """
    try:
        value = json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError("an escape such as \\ud83d is half a character") from error
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    if text.count("{") + text.count("[") > _MOST_LEVELS and _levels(value) > _MOST_LEVELS:
        raise ValueError(_TOO_DEEP)
    return value


def _levels(value: object) -> int:
    """How many lists and objects are within one another; not by recursion, whose limit differs between Pythons."""
    count, level = 0, [value]
    while level := [one for one in level if isinstance(one, list | dict)]:
        count += 1
        level = [part for one in level for part in (one.values() if isinstance(one, dict) else one)]
    return count


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} appears twice")
    return fields


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} isn't JSON; write null or leave the field out")
