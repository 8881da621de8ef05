"""Values of a row that a conversation is read from: what is expected of each, said where it isn't found."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from manytune.data.nearest import did_you_mean
from manytune.data.printable import is_absent
from manytune.data.rendering import shorten
from manytune.data.strict_json import parse
from manytune.errors import DataError

TEMPLATE_KWARGS = "chat_template_kwargs"
"""The field with a row's own values of the chat template's variables."""


def turns_of(fields: Mapping[str, object], name: str) -> list[Mapping[str, Any]]:
    """Return a field that holds a list of messages, each an object; a list that is written as JSON text is read.

    Raises:
        DataError: It doesn't hold such a list, or an empty one.
    """
    value = from_json(fields.get(name))
    if not isinstance(value, list):
        raise DataError(
            f"the field {name!r} should be a list of messages; it is {described(value)}{_not_json(value)}"
        )
    if not value:
        raise DataError(f"the field {name!r} has no message in it")
    for place, turn in enumerate(value, start=1):
        if not isinstance(turn, Mapping):
            raise DataError(f"message {place} should be an object; it is {described(turn)}")
    return value


def text_of(value: object, what: str) -> str:
    """Return a text, or that of a list of text parts; nothing is an empty text.

    Args:
        value: The value.
        what: What it is, for messages: `"message 3"`.

    Raises:
        DataError: It is something else, such as an image.
    """
    if is_absent(value):
        return ""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise DataError(f"{what} should hold text or a list of text parts; it holds {described(value)}")
    texts = []
    for part in value:
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        found = part if isinstance(part, str) else part.get("text") if isinstance(part, Mapping) else None
        if kind != "text":
            raise DataError(f"{what} has a part of type {kind!r}; manytune reads and learns text only")
        if not isinstance(found, str):
            raise DataError(f"{what} has a part without text: {described(part)}")
        texts.append(found)
    return "".join(texts)


def optional_text(value: object, what: str) -> str | None:
    """Return a text, or None for nothing and for an empty text.

    Raises:
        DataError: It is something else.
    """
    if is_absent(value) or value == "":
        return None
    if isinstance(value, str):
        return value
    raise DataError(f"{what} should be text; it is {described(value)}")


def object_text(value: object, what: str) -> str:
    """Return a JSON object as text, from text or from the object itself.

    Raises:
        DataError: It is no JSON object.
    """
    found = value
    if isinstance(value, str):
        try:
            found = parse(value)
        except ValueError as error:
            raise DataError(f"{what} aren't JSON ({error}): {shorten(value)!r}") from error
    if not isinstance(found, Mapping):
        raise DataError(f"{what} should be a JSON object; they are {described(found)}")
    try:
        return json.dumps(found, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{what} can't be written as JSON ({error}): {described(found)}") from error


def template_kwargs_of(fields: Mapping[str, object]) -> Mapping[str, Any]:
    """Return a row's own values of the chat template's variables; none for nothing.

    Raises:
        DataError: They aren't an object.
    """
    found = from_json(fields.get(TEMPLATE_KWARGS))
    if is_absent(found) or found in ("", [], {}):
        return {}
    if not isinstance(found, Mapping):
        raise DataError(
            f'{TEMPLATE_KWARGS} should be an object such as {{"enable_thinking": false}}; it is {described(found)}'
        )
    return {str(name): value for name, value in found.items() if value is not None}


def tools_of(value: object, what: str = "tools") -> tuple[Mapping[str, Any], ...]:
    """Return the functions in a list of them, or in such a list as JSON text; none for nothing.

    Raises:
        DataError: It is something else, or a function has no name.
    """
    found = from_json(value)
    if is_absent(found) or found in ([], "", {}):
        return ()
    if not isinstance(found, list):
        raise DataError(f"{what} should be a list of functions; it is {described(found)}{_not_json(found)}")
    return tuple(
        _tool(from_json(one), f"{what}, function {place}") for place, one in enumerate(found, start=1)
    )


def from_json(value: object) -> object:
    """Return what JSON text of a list or an object says; any other value as it is."""
    if isinstance(value, str) and value.strip()[:1] in ("[", "{"):
        try:
            return parse(value)
        except ValueError:
            return value
    return value


def unknown(value: object, known: Collection[str]) -> str:
    """Return the end of a message about a value that isn't one of several names: which they are, and the nearest."""
    near = did_you_mean(shorten(value), known) if isinstance(value, str) else ""
    return f"{', '.join(known)}{near}"


def shown(value: object) -> str:
    """Return a value as messages quote it."""
    return shorten(repr(value)) if isinstance(value, str) else described(value)


def described(value: object) -> str:
    """Return a value as messages show it."""
    if value is None:
        return "null"
    kinds = {
        str: "the text",
        bool: "",
        int: "the number",
        float: "the number",
        list: "the list",
        dict: "the object",
    }
    try:
        text = shorten(json.dumps(value, ensure_ascii=False, default=str))
    except (TypeError, ValueError, RecursionError):  # keys that JSON doesn't have, or hundreds of levels
        text = "that JSON can't show"
    return f"{kinds.get(type(value), type(value).__name__)} {text}".strip()


def unused_keys(turn: Mapping[str, Any], known: Sequence[str], what: str) -> list[str]:
    """Return a note about each key of a message that has a value and isn't used."""
    return [
        f"{what} has {key!r}, which isn't used" for key, value in turn.items() if key not in known and value
    ]


def _not_json(value: object) -> str:
    """Why text that begins like JSON wasn't read; empty for anything else."""
    if isinstance(value, str) and value.strip()[:1] in ("[", "{"):
        try:
            parse(value)
        except ValueError as error:
            return f", which isn't JSON: {error}"
    return ""


def _tool(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise DataError(f"{what}, should be an object; it is {described(value)}")
    kind = value.get("type", "function")
    function = value.get("function", value)
    if kind != "function" or not isinstance(function, Mapping):
        raise DataError(f"{what}, is of type {kind!r}; manytune knows tools of type 'function'")
    if not isinstance(function.get("name"), str):
        raise DataError(f"{what}, has no name: {described(value)}")
    return {"type": "function", "function": dict(function)}
