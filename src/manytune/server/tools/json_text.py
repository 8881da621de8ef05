"""JSON that comes in parts: where a value ends, and calls that are JSON objects."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any

from manytune.server.tools.calls import Step

_MARKS = re.compile(r'["{}\[\]\\]')
_STRING_END = re.compile(r'["\\]')
_STRING = r'"(?:[^"\\]|\\.)*"'
_HEAD = re.compile(
    rf'\s*\{{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*({_STRING})\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{{)'
)
_FIRST_KEY = re.compile(rf"\s*\{{\s*({_STRING})")
_KEYS = ('"name"', '"type"', '"function"', '"id"', '"arguments"', '"parameters"')


class ValueEnd:
    """Finds the end of an object, a list or a string, whose text comes in parts."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def find(self, text: str) -> int | None:
        """The place after the end of the value, if it is in this text, which follows the texts before."""
        place = 0
        while place < len(text):
            if self._escaped:
                self._escaped = False
                place += 1
                continue
            found = (_STRING_END if self._in_string else _MARKS).search(text, place)
            if found is None:
                return None
            place = found.end()
            mark = found[0]
            if mark == "\\":
                self._escaped = self._in_string
            elif mark == '"':
                self._in_string = not self._in_string
            else:
                self._depth += 1 if mark in "{[" else -1
            if self._depth <= 0 and not self._in_string and mark != "\\":
                return place
        return None


class CallObject:
    """Reads one call that is a JSON object with a name and arguments, or parameters, or both in `function`.

    If the name comes first, as models write it, arguments are given out as they come, else when all is there.

    Args:
        names: The functions; an object with another name is no call. None for any.
    """

    def __init__(self, names: Collection[str] | None = None) -> None:
        self._names = names
        self._text = ""  # of which nothing has been given out
        self._object = ValueEnd()
        self._arguments: ValueEnd | None = None  # once the name was given out
        self._scanned = 0  # characters of `_text` that `_object` has seen
        self._arguments_ended = False

    def push(self, text: str) -> Step:
        """Take the next text."""
        self._text += text
        if self._arguments is not None:
            return self._more_arguments(None)
        begun = self._text.lstrip()
        if begun and not begun.startswith("{"):
            return self._no_call()
        head = _HEAD.match(self._text)
        if head is not None:
            return self._begin(_decoded(head[1]), head.end())
        key = _FIRST_KEY.match(self._text)
        if key is not None and key[1] not in _KEYS:
            return self._no_call()
        end = self._object.find(self._text[self._scanned :]) if begun else None
        if end is None:
            self._scanned = len(self._text) if begun else 0
            return Step("open")
        end += self._scanned
        found = call_of(self._text[:end])
        if found is None or not self._knows(found[0]):
            return self._no_call()
        return Step("done", *found, rest=self._text[end:])

    def finish(self) -> Step:
        """End a call that isn't complete: what was given out stays, the rest is text if there is no name yet."""
        return Step("done") if self._arguments is not None else self._no_call()

    def _begin(self, name: str | None, start: int) -> Step:
        if name is None or not self._knows(name):
            return self._no_call()
        self._arguments = ValueEnd()
        self._object = ValueEnd()
        self._object.find(self._text[:start])
        self._text = self._text[start:]
        return self._more_arguments(name)

    def _more_arguments(self, name: str | None) -> Step:
        assert self._arguments is not None
        text, self._text = self._text, ""
        arguments = ""
        if not self._arguments_ended:
            end = self._arguments.find(text)
            arguments = text[:end]
            self._arguments_ended = end is not None
        end = self._object.find(text)
        if end is None:
            return Step("open", name, arguments)
        return Step("done", name, arguments, text[end:])

    def _no_call(self) -> Step:
        text, self._text = self._text, ""
        return Step("text", rest=text)

    def _knows(self, name: str) -> bool:
        return self._names is None or name in self._names


def call_of(text: str) -> tuple[str, str] | None:
    """The name and the arguments of a call that is a whole JSON object; None if it is no call."""
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):
        return value["name"], arguments
    if arguments is not None and not isinstance(arguments, dict):
        return None
    return value["name"], json.dumps(arguments or {}, ensure_ascii=False)


def _decoded(string: str) -> str | None:
    try:
        return str(json.loads(string))
    except ValueError:
        return None
