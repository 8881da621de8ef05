"""What the sections of a recipe have in common: strict keys and values, and how a value is called in a message."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterable
from itertools import pairwise
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from manytune.data.nearest import did_you_mean


class Section(BaseModel):
    """A part of a recipe: no unknown keys, no conversions, the text under each key its description.

    `description_of` reads that text where a message needs it: pydantic's own way reads the sources of all sections
    whenever they are imported, which is a fifth of the time in which a mistake in a recipe is reported.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _whole_as_float(value: object) -> object:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


_LONGEST = 200
"""Characters of a value that a message shows."""

Number = Annotated[float, BeforeValidator(_whole_as_float), Field(allow_inf_nan=False)]


def description_of(section: type[BaseModel], key: str) -> str:
    """The text under a key in its section's source; empty where there is none."""
    for written in section.__mro__:
        if key not in inspect.get_annotations(written):
            continue
        (definition,) = ast.parse(inspect.getsource(written)).body
        assert isinstance(definition, ast.ClassDef)
        for field, text in pairwise(definition.body):
            match field, text:
                case ast.AnnAssign(ast.Name(name)), ast.Expr(ast.Constant(str(found))) if name == key:
                    return inspect.cleandoc(found)
    return ""


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
