"""What readers of answers have in common: text that is pending until it is certain what it is, and marks in it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from manytune.data.encoding.answer_format import beginning_held
from manytune.server.tools.calls import Part, Written


class PendingReader(ABC):
    """Works through an answer in steps, as far as what has come of it allows.

    Args:
        new_id: Makes a name for a call.
    """

    def __init__(self, new_id: Callable[[], str]) -> None:
        self._pending = ""
        self._written = Written(new_id)
        self._gap = ""  # the white space before the last mark

    def push(self, text: str) -> Part:
        """Take the next text."""
        self._pending += text
        while self._pending and self._advance():
            pass
        return self._written.take()

    @abstractmethod
    def _advance(self) -> bool:
        """Work on what is pending; whether there is more to do."""

    def _leave_text(self, mark: str) -> bool:
        """Give out the text before a mark. Whether the mark is there; then what follows it is pending.

        Templates write the line breaks around calls, so they are no text.
        """
        before, found, after = self._pending.partition(mark)
        if found:
            said = before.rstrip()
            self._written.add_text(said)
            self._gap, self._pending = before[len(said) :], after
            return True
        kept = before[: len(before) - beginning_held(before, mark)].rstrip()
        self._written.add_text(kept)
        self._pending = before[len(kept) :]
        return False

    def _take_back(self, mark: str) -> None:
        """Give out a mark that no call follows, and the white space before it."""
        self._written.add_text(self._gap + mark)

    def _finish_text(self) -> None:
        """Give out what is left of text; white space after calls is none."""
        if self._pending.strip() or not self._written.calls:
            self._written.add_text(self._pending)
