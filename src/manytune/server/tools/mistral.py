"""Calls as Mistral's models write them.

    [TOOL_CALLS] [{"name": "add", "arguments": {"a": 1}}]
    [TOOL_CALLS]add[ARGS]{"a": 1}

The second form is that of later models, which may write `[CALL_ID]` and a name for the call before `[ARGS]`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from manytune.engine.constraints.spelling import in_regex, spelled
from manytune.server.tools.bare import BareReader
from manytune.server.tools.call_texts import arguments_rules, object_rules
from manytune.server.tools.calls import CallReader, CallRules, Part, Tool, short_id
from manytune.server.tools.json_text import ValueEnd
from manytune.server.tools.marked import PendingReader

_OPEN, _ARGUMENTS = "[TOOL_CALLS]", "[ARGS]"
_CALL_ID = r'CALL_ID: /, "id": "[a-zA-Z0-9]{9}"/'
_HEAD = re.compile(r"\s*([\w.-]+?)(?:\[CALL_ID\](\w+))?(?:\[ARGS\])?\s*(?=\{)")


class Mistral:
    """Calls after a mark.

    Args:
        named: Whether each call has its name before `[ARGS]`, and no list is around them.
    """

    name = "mistral"

    def __init__(self, *, named: bool) -> None:
        self._named = named

    def reader(self, tools: Collection[str]) -> CallReader:
        """A reader of one answer, in either form; the mark says what is a call, whatever its name."""
        return _Reader()

    def rules(
        self, tools: Sequence[Tool], special: Mapping[str, int], *, several: bool, strict: bool
    ) -> CallRules:
        """The calls as parts of a grammar."""
        if self._named:
            heads = (spelled(f"{tool.name}{_ARGUMENTS}", special) for tool in tools)
            choices = " | ".join(f"{head} arguments_{place}" for place, head in enumerate(heads))
            body = f"call_body: {choices}\n{arguments_rules(tools, strict=strict)}"
            more = f" ({spelled(_OPEN, special)} call_body)*" if several else ""
        else:
            inner = ' (", " call_object)*' if several else ""
            objects = object_rules(tools, "arguments", strict=strict, more="CALL_ID?") + f"\n{_CALL_ID}"
            body, more = f'call_body: " "? "[" call_object{inner} "]"\n{objects}', ""
        if _OPEN in special:  # no text contains a special token
            head, text = f"call_head: TEXT {spelled(_OPEN, special)}", "TEXT: /(?s:.)*/"
        else:
            mark = in_regex(_OPEN)
            head = f"call_head[lazy]: /(?s:.)*{mark}/"
            text = f"TEXT: /(?s:.)*/ & ~/(?s:.)*{mark}(?s:.)*/"
        return CallRules(
            calls=f"{spelled(_OPEN, special)} call_body{more}",
            answer=f"(call_head call_body{more}) | TEXT",
            text="TEXT",
            rules="\n".join((body, text, head)),
        )


class _Reader(PendingReader):
    def __init__(self) -> None:
        super().__init__(short_id)
        self._state = "text"  # or head, arguments, or list
        self._arguments = ValueEnd()
        self._list = BareReader(None, "", short_id)

    def push(self, text: str) -> Part:
        found = super().push(text)
        if self._state != "list":
            return found
        more = self._push_to_list()
        return Part(found.text + more.text, (*found.calls, *more.calls))

    def finish(self) -> Part:
        if self._state == "list":
            return self._of_list(self._list.finish())
        if self._state == "head":
            self._take_back(_OPEN)
            self._written.add_text(self._pending)
        elif self._state == "text":
            self._finish_text()
        self._pending = ""
        return self._written.take()

    def _push_to_list(self) -> Part:
        text, self._pending = self._pending, ""
        return self._of_list(self._list.push(text))

    def _of_list(self, part: Part) -> Part:
        """What the list's reader found, its calls numbered after those before the list."""
        before = self._written.calls
        return Part(part.text, tuple(replace(call, index=call.index + before) for call in part.calls))

    def _advance(self) -> bool:
        if self._state == "text":
            if not self._leave_text(_OPEN):
                return False
            self._state = "head"
            return True
        if self._state == "head":
            return self._leave_head()
        if self._state == "list":
            return False
        text, self._pending = self._pending, ""
        end = self._arguments.find(text)
        self._written.continue_call(text[:end])
        if end is not None:
            self._pending, self._state = text[end:], "text"
        return end is not None

    def _leave_head(self) -> bool:
        begun = self._pending.lstrip()
        if begun.startswith(("[{", "[ ", "[\n", "{")):
            self._state = "list"
            self._list = BareReader(None, "", short_id, opening=self._gap + _OPEN)
            return False
        head = _HEAD.match(self._pending)
        if head is None:
            if "{" not in begun and "\n" not in begun.strip():
                return False
            self._take_back(_OPEN)  # what comes before the arguments is no name
            self._state = "text"
            return True
        self._written.begin_call(head[1], "", head[2])
        self._pending, self._state = self._pending[head.end() :], "arguments"
        self._arguments = ValueEnd()
        return True


def writes_names(text: str) -> bool:
    """Whether a template's own text of a call has the later form."""
    return _ARGUMENTS in text or (_OPEN in text and not json_follows(text))


def json_follows(text: str) -> bool:
    """Whether JSON follows the mark in a template's own text of a call."""
    after = text.partition(_OPEN)[2].strip()
    try:
        json.JSONDecoder().raw_decode(after)
    except ValueError:
        return False
    return True
