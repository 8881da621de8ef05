"""The types of fields that take values of several shapes, each with the alternative that a value is meant to be."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, Tag

from manytune.server.body_errors import alternatives, tag

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


_Stop = Annotated[str, Field(min_length=1, max_length=200)]
Stops = Annotated[
    Annotated[_Stop, Tag(STRING)] | Annotated[list[_Stop], Field(max_length=4), Tag(LIST)],
    alternatives("a string or a list of up to 4 strings", string_or_list),
]
Prompts = Annotated[
    Annotated[str, Tag(STRING)]
    | Annotated[list[str], Tag(_STRINGS)]
    | Annotated[list[int], Tag(_TOKENS)]
    | Annotated[list[list[int]], Tag(_TOKEN_LISTS)],
    alternatives("a string, a list of tokens, or a list of strings or of such lists", _text_or_tokens),
]
