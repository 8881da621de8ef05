"""Regular expressions of adapters' options, which somebody else may have written: matched in linear time.

Python's `re` tries one way after another to match, so `(a+)+$` or forty times `.?` can keep it busy for years. RE2
(Cox, "Regular Expression Matching Can Be Simple And Fast", 2007) follows all ways at once. It takes what `re` takes
but for backreferences and looking around. Both then accept the same texts.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from manytune.errors import ConfigError

try:
    import re2
except ModuleNotFoundError:  # a server has it; elsewhere options are usually one's own
    re2 = None

_CHOICE = re.compile(r"[*+?{|]")
_OTHER_IN_RE2 = ("{,", "[[", "\\Z")  # read by both, and not alike, or by one alone


def fullmatch(pattern: str, text: str) -> bool:
    """Whether an expression matches a whole text.

    Raises:
        ConfigError: It isn't a regular expression.
    """
    return _expression(pattern).fullmatch(text) is not None


def match(pattern: str, text: str) -> Callable[[int], str] | None:
    """The groups of an expression's match at the beginning of a text, by their numbers; None if it doesn't match.

    Raises:
        ConfigError: It isn't a regular expression.
    """
    found = _expression(pattern).match(text)
    return None if found is None else found.group


def is_linear(pattern: str) -> bool:
    """Whether matching an expression takes a time in proportion to the text.

    Raises:
        re.error: It isn't a regular expression.
    """
    return _choices(pattern) <= 1 or not isinstance(_compiled(pattern), re.Pattern)


def has_choices(pattern: str) -> bool:
    """Whether an expression can match in more than one way: whether it has any repetition or alternative."""
    return _choices(pattern) > 0


def _expression(pattern: str) -> Any:
    try:
        return _compiled(pattern)
    except re.error as error:
        raise ConfigError(
            f"{pattern!r} isn't a regular expression: {error}. Several names are written as a list, such as [q_proj, "
            "v_proj]; in an expression `.*` is any text, and a backslash takes a sign's meaning away."
        ) from error


def _choices(pattern: str) -> int:
    return len(_CHOICE.findall(pattern))


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> Any:
    usual = re.compile(pattern)
    if re2 is None or _choices(pattern) <= 1 or not pattern.isascii():
        return usual
    if any(part in pattern for part in _OTHER_IN_RE2):
        return usual
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error:
        return usual
