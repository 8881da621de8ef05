"""Whether an option that is a mapping, a list or a number is one, as it comes from YAML, JSON or a call."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import types
import typing
from collections.abc import Mapping, Set
from numbers import Integral, Real
from typing import Any

from manytune.errors import ConfigError

_LISTS = (list, set, tuple)
_LONGEST = 100  # characters of a value that a message shows


def check_option_types(config: Any, *, besides: Set[str] = frozenset()) -> None:
    """Compare every option of a configuration whose annotation is a mapping, a list or a number with it.

    Any sequence or set passes for a list, a dataclass for a mapping of anything, a whole number for a number. Texts and
    what is a name or a list of names are checked by the methods that have them, in their own words.

    Args:
        config: A dataclass.
        besides: Fields that aren't checked.

    Raises:
        ConfigError: An option's value is of another kind, or is NaN or Inf.
    """
    kind: Any = type(config)
    for name, annotation in _annotations(kind).items():
        value = getattr(config, name)
        if name not in besides and not _fits(value, annotation):
            expected = str(annotation) if typing.get_args(annotation) else annotation.__name__
            raise ConfigError(
                f"{kind.__name__}: {name}: expected {expected.replace('typing.', '')}; "
                f"found {_shown(value)} ({type(value).__name__}){_instead(value)}."
            )


@functools.cache
def _annotations(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    found = {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    return {name: annotation for name, annotation in found.items() if _is_checked(annotation)}


def _is_checked(annotation: Any) -> bool:
    parts = [part for part in typing.get_args(annotation) if part is not type(None)]
    is_union = typing.get_origin(annotation) in (types.UnionType, typing.Union)
    only = parts[0] if is_union and len(parts) == 1 else annotation
    return only in (bool, float, int) or typing.get_origin(only) in (dict, list)


def _fits(value: Any, annotation: Any) -> bool:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return True
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, one) for one in arguments)
    if origin in _LISTS:
        if isinstance(value, str) or not isinstance(value, (*_LISTS, Set)):
            return False
        return origin is tuple or all(_fits(one, arguments[0]) for one in value)
    if origin is dict:
        if arguments[1] is Any and dataclasses.is_dataclass(value):
            return True
        if value is None:  # no pattern, as files say it
            return True
        return isinstance(value, Mapping) and all(_fits(one, arguments[1]) for one in value.values())
    if annotation is bool:  # null and 0 are false to readers of these files
        return value is None or isinstance(value, Integral)
    if annotation is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    if annotation is float:
        return isinstance(value, Real) and not isinstance(value, bool) and _is_finite(value)
    if annotation is None or annotation is type(None):
        return value is None
    return isinstance(value, annotation) or (
        dataclasses.is_dataclass(annotation) and isinstance(value, Mapping)
    )


def _instead(value: object) -> str:
    """What to write in a recipe for a text that was meant to be something else; empty if that isn't clear."""
    if not isinstance(value, str):
        return ""
    if re.fullmatch(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?|true|false", value.strip(), re.IGNORECASE):
        return f"; write {value.strip().lower()}, without quotes"
    return "; in a recipe a list has brackets, such as [q_proj, v_proj]" if "," in value else ""


def _is_finite(value: Real) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        return False


def _shown(value: object) -> str:
    try:
        shown = repr(value)
    except (ValueError, RecursionError):  # a whole number of thousands of digits, a list that holds itself
        return "…"
    return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}…"
