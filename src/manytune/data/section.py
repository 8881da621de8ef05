"""What the sections of a recipe have in common: strict keys and values, and how a value is called in a message."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict

from manytune.data.nearest import did_you_mean


class Section(BaseModel):
    """A part of a recipe: no unknown keys, no conversions, the text under each key its description."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


def _whole_as_float(value: object) -> object:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


_LONGEST = 200
"""Characters of a value that a message shows."""

Number = Annotated[float, BeforeValidator(_whole_as_float)]


def no_such_key(key: str, known: Iterable[str]) -> str:
    """Return a message's end for a key that a section doesn't have: the nearest one, and all that there are."""
    keys = list(known)
    return f"there is no such key{did_you_mean(key, keys) or '.'} Known: {', '.join(keys)}."


def kind_of(value: object) -> str:
    """Return a value as messages show it, with its kind in words."""
    names = {str: "text", bool: "true or false", int: "a whole number", float: "a number", list: "a list"}
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a section"
    try:
        shown = repr(value)
    except (ValueError, RecursionError):  # a whole number of thousands of digits, a list that holds itself
        shown = "…"
    shown = shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}…"
    return f"{shown} ({names.get(type(value), type(value).__name__)})"
