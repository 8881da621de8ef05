"""Incremental detokenization: never half a character, never the beginning of a stop string.

A token may end in the middle of a character, and its text may depend on the token before it. So a few tokens are
decoded together each time, and text is returned once it doesn't end in an incomplete character.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_BROKEN = "\ufffd"


class TextStream:
    """The text of one answer.

    Args:
        tokenizer: The model's tokenizer.
        stop: Strings that end the answer.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._context = (
            0  # tokens from here are decoded again with the new ones, whose text may depend on them
        )
        self._given = 0  # tokens whose text has been returned
        self._held = ""  # text that may be the beginning of a stop string

    def push(self, token: int) -> tuple[str, bool]:
        """Add a token.

        Returns:
            The text that is complete now, and whether a stop string has ended the answer.
        """
        self._ids.append(token)
        before, after = self._decode(self._context, self._given), self._decode(self._context, None)
        if len(after) <= len(before) or after.endswith(_BROKEN):
            return "", False
        self._context, self._given = self._given, len(self._ids)
        return self._release(after[len(before) :])

    def finish(self) -> tuple[str, bool]:
        """The text that is still held back when the answer ends, and whether a stop string was in it."""
        before, after = self._decode(self._context, self._given), self._decode(self._context, None)
        self._context = self._given = len(self._ids)
        text, stopped = self._release(after[len(before) :])
        held, self._held = self._held, ""
        return (text, True) if stopped else (text + held, False)

    def _decode(self, start: int, end: int | None) -> str:
        ids = self._ids[start:end]
        return str(self._tokenizer.decode(ids, skip_special_tokens=True)) if ids else ""

    def _release(self, new: str) -> tuple[str, bool]:
        if not self._stop:
            return new, False
        text = self._held + new
        ends = [place for place in (text.find(stop) for stop in self._stop) if place >= 0]
        if ends:
            self._held = ""
            return text[: min(ends)], True
        keep = max(_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False


def _overlap(text: str, stop: str) -> int:
    """Length of the longest prefix of `stop` that `text` ends with."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
