"""A prompt that is too long, with the end of its last user message cut off."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable, Sequence

from manytune.data.templates import Segment


def shortened_prompt(
    segments: Sequence[Segment], room: int, encode: Callable[[Sequence[Segment]], tuple[int, ...]]
) -> tuple[int, ...]:
    """Return the prompt with as much of the last user message as fits, from its start; empty if none does.

    Args:
        segments: The messages, in order.
        room: The most tokens.
        encode: Gives the tokens of messages.
    """
    last_user = max((i for i, segment in enumerate(segments) if segment.role == "user"), default=None)
    if last_user is None:
        return ()
    text = segments[last_user].text

    def cut(length: int) -> tuple[int, ...]:
        shorter = dataclasses.replace(segments[last_user], text=text[:length])
        return encode((*segments[:last_user], shorter, *segments[last_user + 1 :]))

    # Longer text is, nearly always, more tokens; and bisection ends on a length that it has seen to fit.
    length = bisect.bisect_right(range(len(text)), room, key=lambda length: len(cut(length))) - 1
    return cut(length) if length > 0 and text[:length].strip() else ()
