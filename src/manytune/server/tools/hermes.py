"""Calls as Nous Research's Hermes models, Qwen 2.5 and Qwen 3 write them.

    <tool_call>
    {"name": "add", "arguments": {"a": 1}}
    </tool_call>

They are also written like this where a chat template knows no tools.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from manytune.data.answer_format import beginning_held
from manytune.engine.constraints.spelling import in_regex, spelled
from manytune.server.tools.call_texts import object_rules
from manytune.server.tools.calls import CallReader, CallRules, Part, Step, Tool, Written, new_id
from manytune.server.tools.json_text import CallObject

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


class _Reader:
    def __init__(self) -> None:
        self._pending = ""
        self._written = Written(new_id)
        self._state = "text"  # or call, or closing
        self._call = CallObject()

    def push(self, text: str) -> Part:
        self._pending += text
        while self._pending and self._advance():
            pass
        return self._written.take()

    def finish(self) -> Part:
        if self._state == "call":
            step = self._call.finish()
            if step.state == "done" or not self._written.calls:  # else a further call that was cut off
                self._take(step)
        if self._state == "text" and (self._pending.strip() or not self._written.calls):
            self._written.add_text(self._pending)
        self._pending = ""
        return self._written.take()

    def _advance(self) -> bool:
        """Work on what is pending; whether there is more to do."""
        if self._state == "text":
            return self._leave_text()
        if self._state == "call":
            text, self._pending = self._pending, ""
            return self._take(self._call.push(text))
        pending = self._pending.lstrip()
        if _CLOSE.startswith(pending) and pending != _CLOSE:
            return False
        self._pending, self._state = pending.removeprefix(_CLOSE), "text"
        return True

    def _leave_text(self) -> bool:
        before, found, after = self._pending.partition(_OPEN)
        if found:
            # The template writes the line breaks around calls, so they are no text.
            self._written.add_text(before.rstrip())
            self._pending, self._state, self._call = after, "call", CallObject()
            return True
        kept = before[: len(before) - beginning_held(before, _OPEN)].rstrip()
        self._written.add_text(kept)
        self._pending = before[len(kept) :]
        return False

    def _take(self, step: Step) -> bool:
        self._written.take_step(step)
        if step.state == "open":
            return False
        self._pending, self._state = step.rest, "closing"
        if step.state == "text":
            self._written.add_text(_OPEN)
            self._state = "text"
        return True
