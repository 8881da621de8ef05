"""How a grammar's rules spell a text that contains special tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def special_tokens(tokenizer: Any) -> dict[str, int]:
    """Return the numbers of a tokenizer's special tokens by their texts."""
    added = tokenizer.added_tokens_decoder
    return {token.content: number for number, token in added.items() if token.special}


def spelled(text: str, special: Mapping[str, int]) -> str:
    """Return a part of a rule that matches a text: special tokens by their numbers, the rest in quotes.

    Args:
        text: It must not be empty.
        special: Numbers of the special tokens.
    """
    parts: list[str] = []
    while text:
        places = {text.find(name): name for name in sorted(special, key=len) if name in text}
        first = min(places, default=len(text))
        if first:
            parts.append(json.dumps(text[:first]))
            text = text[first:]
        else:
            name = places[0]
            parts.append(f"<[{special[name]}]>")
            text = text[len(name) :]
    return " ".join(parts)


def in_regex(text: str) -> str:
    """Return a text as a part of a regular expression of a rule, between slashes."""
    escaped = "".join(f"\\{one}" if one in _OF_REGEXES else one for one in text)
    return escaped.replace("\n", "\\n")


#: Characters that mean something there. Others must not be escaped: a word begins at an escaped less-than sign.
_OF_REGEXES = frozenset(r"\.+*?()|[]{}^$/&~#-")
