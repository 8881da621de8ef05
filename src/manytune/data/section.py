"""What the sections of a recipe have in common: strict keys and values, and how a value is called in a message."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict


class Section(BaseModel):
    """A part of a recipe: no unknown keys, no conversions, the text under each key its description."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


def _whole_as_float(value: object) -> object:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


Number = Annotated[float, BeforeValidator(_whole_as_float)]


def kind_of(value: object) -> str:
    """Return a value as messages show it, with its kind in words."""
    names = {str: "text", bool: "true or false", int: "a whole number", float: "a number", list: "a list"}
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a section"
    return f"{value!r} ({names.get(type(value), type(value).__name__)})"
