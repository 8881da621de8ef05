"""How much a regular expression repeats, counted before it is compiled.

Expressions are matched by automata, so none takes time exponential in a text; but counted repetitions are written out.
"""

from __future__ import annotations

import re

from manytune.errors import GrammarError

_MOST_ADDED = 5_000  # characters and classes that repetitions may add; the automaton has as many more states
_TOKEN = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\{(\d*)(?:,(\d*))?\}|[()|]|.", re.DOTALL)


def check_pattern(pattern: str, where: str) -> None:
    """Refuse counted repetitions, within one another or alone, that are long when they are written out.

    Raises:
        GrammarError: There are such.
    """
    added = added_by_repetitions(pattern)
    if added > _MOST_ADDED:
        raise GrammarError(
            f"expected counted repetitions such as {{1,9}} of {_MOST_ADDED:,} characters at most, "
            f"found {added:,}.",
            where=where,
        )


def added_by_repetitions(pattern: str) -> int:
    """How much longer an expression is, in characters and classes, once its counted repetitions are written out."""
    open_groups: list[int] = []
    length = last = plain = 0  # of the group so far, of its last part, and of the expression as it is
    for token in _TOKEN.finditer(pattern):
        match token[0]:
            case "(":
                open_groups.append(length)
                length = last = 0
            case ")":
                last = length
                length += open_groups.pop() if open_groups else 0
            case "|":
                last = 0
            case _ if token[1] or token[2]:
                times = max(1, int((token[2] or token[1])[:9]))
                length += last * (times - 1)
                last *= times
            case _:
                plain += 1
                length, last = length + 1, 1
    return length + sum(open_groups) - plain
