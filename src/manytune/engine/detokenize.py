"""Incremental detokenization: never half a character, never the beginning of a stop string.

A token may end in the middle of a character, and its text may depend on the token before it. So a few tokens are
decoded together each time, and text is returned once it doesn't end in an incomplete character.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

_BROKEN = "\ufffd"


def decode(tokenizer: Any, ids: Sequence[int], end_ids: Collection[int]) -> str:
    """Return the text of an answer's tokens, to the letter.

    Special tokens are in it, as an adapter may have been trained to write them. Only end tokens have no text.
    """
    kept = [token for token in ids if token not in end_ids]
    return str(tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False))


class TextStream:
    """The text of one answer.

    Args:
        tokenizer: The model's tokenizer.
        stop: Strings that end the answer.
        end_ids: Tokens without a text.
        opening: What the chat template writes before an answer; no stop string is sought in it.
    """

    def __init__(
        self, tokenizer: Any, stop: Sequence[str] = (), *, end_ids: Collection[int] = (), opening: str = ""
    ) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._end_ids = end_ids
        self._opening = opening if stop else ""
        self._ids: list[int] = []
        # Tokens from here are decoded again with the new ones, whose text may depend on them.
        self._context = 0
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
        text, stopped = self._release(after[len(before) :], ended=True)
        held, self._held = self._held, ""
        return (text, True) if stopped else (text + held, False)

    def _decode(self, start: int, end: int | None) -> str:
        ids = self._ids[start:end]
        return decode(self._tokenizer, ids, self._end_ids) if ids else ""

    def _release(self, new: str, *, ended: bool = False) -> tuple[str, bool]:
        if not self._stop:
            return new, False
        text = self._held + new
        if self._opening:
            if not ended and text != self._opening and self._opening.startswith(text):
                self._held = text
                return "", False
            opening, self._opening, self._held = self._opening, "", ""
            if text.startswith(opening):
                rest, stopped = self._release(text[len(opening) :])
                return opening + rest, stopped
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
