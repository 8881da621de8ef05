"""The types of fields that take values of several shapes, each with the alternative that a value is meant to be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, TypeVar

from pydantic import BeforeValidator, Field, Tag
from pydantic_core import PydanticKnownError

from manytune.server.bodies.body_errors import alternatives, tag

STRING, LIST, _STRINGS, _TOKENS, _TOKEN_LISTS = map(
    tag, ("string", "list", "strings", "tokens", "token lists")
)


def string_or_list(value: object) -> str | None:
    """Which of the two a value is meant to be, as a tag."""
    return STRING if isinstance(value, str) else LIST if isinstance(value, list) else None


def _text_or_tokens(value: object) -> str | None:
    """What a prompt is meant to be, by its type and that of its first element."""
    if not isinstance(value, list):
        return STRING if isinstance(value, str) else None
    kinds = {int: _TOKENS, str: _STRINGS, list: _TOKEN_LISTS}
    return kinds.get(type(value[0])) if value else None


_Item = TypeVar("_Item")
#: A list of which the first wrong item is answered: a body has room for a hundred thousand of them.
Items = Annotated[list[_Item], Field(fail_fast=True)]


def at_most(most: int) -> BeforeValidator:
    """Refuses an object of more entries before they are looked at."""

    def check(value: object) -> object:
        if isinstance(value, Mapping) and len(value) > most:
            context = {"field_type": "Dictionary", "max_length": most, "actual_length": len(value)}
            raise PydanticKnownError("too_long", context)
        return value

    return BeforeValidator(check)


_Stop = Annotated[str, Field(min_length=1, max_length=200)]
Stops = Annotated[
    Annotated[_Stop, Tag(STRING)] | Annotated[Items[_Stop], Field(max_length=4), Tag(LIST)],
    alternatives("a string or a list of up to 4 strings", string_or_list),
]
Prompts = Annotated[
    Annotated[str, Tag(STRING)]
    | Annotated[Items[str], Tag(_STRINGS)]
    | Annotated[Items[int], Tag(_TOKENS)]
    | Annotated[Items[Items[int]], Tag(_TOKEN_LISTS)],
    alternatives("a string, a list of tokens, or a list of strings or of such lists", _text_or_tokens),
]
