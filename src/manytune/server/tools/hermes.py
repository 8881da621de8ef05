"""Calls as Nous Research's Hermes models, Qwen 2.5 and Qwen 3 write them.

    <tool_call>
    {"name": "add", "arguments": {"a": 1}}
    </tool_call>

They are also written like this where a chat template knows no tools.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from manytune.engine.constraints.spelling import in_regex, spelled
from manytune.server.tools.call_texts import object_rules
from manytune.server.tools.calls import CallReader, CallRules, Part, Step, Tool, new_id
from manytune.server.tools.json_text import CallObject
from manytune.server.tools.marked import PendingReader

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"


class Hermes:
    """Calls between tags."""

    name = "hermes"

    def reader(self, tools: Collection[str]) -> CallReader:
        """A reader of one answer; the tags say what is a call, whatever its name."""
        return _Reader()

    def rules(
        self, tools: Sequence[Tool], special: Mapping[str, int], *, several: bool, strict: bool
    ) -> CallRules:
        """The calls as parts of a grammar."""
        inside = f"{spelled(chr(10), special)} call_object {spelled(chr(10) + _CLOSE, special)}"
        more = f" ({spelled(chr(10) + _OPEN, special)} call_body)*" if several else ""
        rules = [f"call_body: {inside}", object_rules(tools, "arguments", strict=strict)]
        if _OPEN in special:  # no text contains a special token
            rules.append("TEXT: /(?s:.)*/")
            rules.append(f"call_head: TEXT {spelled(_OPEN, special)}")
        else:
            mark = in_regex(_OPEN)
            rules.append(f"TEXT: /(?s:.)*/ & ~/(?s:.)*{mark}(?s:.)*/")
            rules.append(f"call_head[lazy]: /(?s:.)*{mark}/")
        return CallRules(
            calls=f"{spelled(_OPEN, special)} call_body{more}",
            answer=f"(call_head call_body{more}) | TEXT",
            text="TEXT",
            rules="\n".join(rules),
        )


class _Reader(PendingReader):
    def __init__(self) -> None:
        super().__init__(new_id)
        self._state = "text"  # or call, or closing
        self._call = CallObject()

    def finish(self) -> Part:
        if self._state == "call":
            step = self._call.finish()
            if step.state == "done" or not self._written.calls:  # else a further call that was cut off
                self._take(step)
        if self._state == "text":
            self._finish_text()
        self._pending = ""
        return self._written.take()

    def _advance(self) -> bool:
        if self._state == "text":
            if not self._leave_text(_OPEN):
                return False
            self._state, self._call = "call", CallObject()
            return True
        if self._state == "call":
            text, self._pending = self._pending, ""
            return self._take(self._call.push(text))
        pending = self._pending.lstrip()
        if _CLOSE.startswith(pending) and pending != _CLOSE:
            return False
        self._pending, self._state = pending.removeprefix(_CLOSE), "text"
        return True

    def _take(self, step: Step) -> bool:
        self._written.take_step(step)
        if step.state == "open":
            return False
        self._pending, self._state = step.rest, "closing"
        if step.state == "text":
            self._take_back(_OPEN)
            self._state = "text"
        return True
