"""Calls that are JSON without marks: answers that begin with an object that calls a function, or with a list."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from manytune.server.tools.calls import Part, Step
from manytune.server.tools.json_text import CallObject
from manytune.server.tools.marked import PendingReader

_BETWEEN = ";,]"  # and white space


class BareReader(PendingReader):
    """Reads an answer that is calls, or is text from its first character on.

    Args:
        names: The functions; an object that calls another one is text. None for any.
        mark: What may come before the first call.
        new_id: Makes a name for a call.
        opening: What came before, which is text if no call follows.
    """

    def __init__(
        self, names: Collection[str] | None, mark: str, new_id: Callable[[], str], *, opening: str = ""
    ) -> None:
        super().__init__(new_id)
        self._names = names
        self._mark = mark
        self._opening = opening  # what came before a call, which is text if it is none
        self._state = "between"  # or call, or text
        self._call = CallObject(names)

    def finish(self) -> Part:
        """Return the rest."""
        if self._state == "call":
            step = self._call.finish()
            # After a call, what begins like another one is one that was cut off.
            self._take(step if not self._written.calls else replace(step, rest=""))
        if not self._written.calls:
            self._written.add_text(self._opening + self._pending)
        self._pending = self._opening = ""
        return self._written.take()

    def _advance(self) -> bool:
        text, self._pending = self._pending, ""
        if self._state == "text":
            self._written.add_text(text)
            return False
        if self._state == "call":
            return self._take(self._call.push(text))
        return self._leave_between(text)

    def _leave_between(self, text: str) -> bool:
        """Skip what may come before a call; what comes before none is text."""
        before = self._without_marks(text)
        if before and self._mark.startswith(before):
            self._pending = text
            return False
        self._opening += text[: len(text) - len(before)]
        if not before:
            return False
        self._pending, self._call = before, CallObject(self._names)
        self._state = "call" if before.startswith("{") else "text"
        if self._state == "text":
            self._written.add_text(self._opening.lstrip() if self._written.calls else self._opening)
            self._opening = ""
        return True

    def _without_marks(self, text: str) -> str:
        between = _BETWEEN if self._written.calls else "["
        while True:
            shorter = text.lstrip().lstrip(between)
            shorter = shorter.removeprefix(self._mark)
            if shorter == text:
                return text
            text = shorter

    def _take(self, step: Step) -> bool:
        self._written.take_step(step)
        if step.name is not None:
            self._opening = ""
        if step.state == "open":
            return False
        self._pending = step.rest
        self._state = "between" if step.state == "done" else "text"
        if step.state == "text":
            self._written.add_text(self._opening if not self._written.calls else "")
            self._opening = ""
        return True
