"""The slow twin of `engine/constraints/`: every token is tried, and the text with it compared with what may be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import regex


def by_pattern(pattern: str, text: bytes, tokens: Mapping[int, bytes]) -> set[int]:
    """The tokens after which a text can still become one that a pattern matches as a whole."""
    return {token for token, content in tokens.items() if content and _can_match(pattern, text + content)}


def by_answers(answers: Iterable[str], text: bytes, tokens: Mapping[int, bytes]) -> set[int]:
    """The tokens after which a text is the beginning of one of the answers, or all of it."""
    wanted = [answer.encode() for answer in answers]
    return {
        token
        for token, content in tokens.items()
        if content and any(answer.startswith(text + content) for answer in wanted)
    }


def _can_match(pattern: str, content: bytes) -> bool:
    # Latin-1 has a character for each byte, so bytes can be matched one by one; the patterns here are ASCII.
    return regex.fullmatch(pattern, content.decode("latin-1"), partial=True) is not None
