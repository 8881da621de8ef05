"""The expressions and names in an adapter's options, which are whatever strings its author has put there."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

from manytune.methods.tuners.patterns import is_linear

#: Characters of the longest expression that a server compiles.
LONGEST_PATTERN = 1000


def compile_expressions(options: Any) -> None:
    """Compile what the options hold as a server does it later. What it would refuse is no error here."""
    pending = [options]
    while pending:
        one = pending.pop()
        if isinstance(one, dict):
            pending += [*one, *one.values()]
        elif isinstance(one, list):
            pending += one
        elif isinstance(one, str) and len(one) <= LONGEST_PATTERN:
            with suppress(re.error, RecursionError, OverflowError):
                is_linear(one)
