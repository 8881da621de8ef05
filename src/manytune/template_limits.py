"""What rendering a template may take. A template can come with somebody else's adapter, and is a program.

Jinja2's sandbox keeps a template from reaching anything, and not from going on forever or filling the memory. Here
every operation that makes something larger than what went in asks first; steps of loops and calls are counted, and what
operations read. Nothing is measured in time, so the same template passes or fails everywhere.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import jinja2

MAX_TEMPLATE = 1 << 17
"""Characters of a template."""
MAX_STEPS = 250_000
"""Steps of all loops; a call counts as `CALL`."""
CALL = 10
MAX_TEXT = 1 << 24
"""Characters, or elements of a list, that one operation may make."""
MAX_WRITTEN = 1 << 26
"""Characters that all operations together may make."""
MAX_READ = 1 << 28
"""Characters that all operations together may compare, search and copy."""
_MAX_BITS = 1 << 14  # of a whole number
_WIDE_PLACE = re.compile(r"%(\([^()]*\))?[-#0 +]*(\d{5}|\*|\d*\.(\d{5}|\*))")


class TemplateLimitError(jinja2.TemplateRuntimeError):
    """A template would make something too large, or goes on for too long."""


@dataclass
class _Spent:
    steps: int = 0
    characters: int = 0
    read: int = 0
    more_steps: int = 0


_spent: ContextVar[_Spent | None] = ContextVar("spent", default=None)


@contextlib.contextmanager
def limited(more_steps: int = 0) -> Iterator[None]:
    """Count what the templates that are rendered in a block take, from nothing.

    Args:
        more_steps: What they may take in addition to `MAX_STEPS`, for what they are given.
    """
    before = _spent.set(_Spent(more_steps=more_steps))
    try:
        yield
    finally:
        _spent.reset(before)


def spend(*, steps: int = 0, characters: int = 0, read: int = 0) -> None:
    """Count steps, and characters that an operation makes or reads.

    Raises:
        TemplateLimitError: They exceed a limit.
    """
    spent = _spent.get() or _Spent()  # a constant that is computed when a template is compiled
    spent.steps += steps
    spent.characters += characters
    spent.read += read
    if spent.steps > MAX_STEPS + spent.more_steps:
        raise TemplateLimitError(f"it takes more than {MAX_STEPS + spent.more_steps:,} steps")
    if spent.read > MAX_READ:
        raise TemplateLimitError(f"it reads more than {MAX_READ:,} characters")
    if characters > MAX_TEXT or spent.characters > MAX_WRITTEN:
        raise TemplateLimitError(f"it makes texts or lists of more than {MAX_TEXT:,} characters or elements")


def counted(values: Any) -> Any:
    """What a loop goes through, its steps counted."""
    if isinstance(values, Sized):
        spend(steps=len(values))
        return values
    return _one_by_one(values) if isinstance(values, Iterable) else values


def _one_by_one(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        spend(steps=1)
        yield value


def weigh(value: Any, *, written: bool = False) -> Any:
    """Count what it takes to go through all of a value, and return it.

    A list that holds another one twice, and that one another, is short and has no end.

    Args:
        value: The value.
        written: Whether it becomes text.

    Raises:
        TemplateLimitError: It is too much.
    """
    pending = [value]
    while pending:
        one = pending.pop()
        if isinstance(one, str):
            spend(characters=len(one) if written else 0, read=len(one))
        elif isinstance(one, Mapping):
            spend(steps=1 + len(one))
            pending += one
            pending += one.values()
        elif isinstance(one, list | tuple | set | frozenset):
            spend(steps=1 + len(one))
            pending += one
    return value


def skim(value: Any) -> Any:
    """Count what it takes to copy or count a value's elements, not what is in them, and return it.

    Raises:
        TemplateLimitError: It is too much.
    """
    if isinstance(value, str):
        spend(steps=1, read=len(value))
    elif isinstance(value, list | tuple | range | Mapping):
        spend(steps=1 + len(value) // 10)
    return value


def check_numbers(left: Any, right: Any) -> None:
    """Refuse to compute with whole numbers of thousands of digits.

    Raises:
        TemplateLimitError: One of them is.
    """
    for number in (left, right):
        if isinstance(number, int):
            _check_bits(number.bit_length())


def check_power(base: Any, exponent: Any) -> None:
    """Refuse a power that is a whole number of thousands of digits.

    Raises:
        TemplateLimitError: It is.
    """
    if isinstance(base, int) and isinstance(exponent, int) and abs(base) > 1:
        _check_bits(base.bit_length() * abs(exponent))


def check_product(left: Any, right: Any) -> None:
    """Refuse a product that is a long text or list, or a whole number of thousands of digits.

    Raises:
        TemplateLimitError: It is.
    """
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())
        return
    for values, times in ((left, right), (right, left)):
        if isinstance(values, Sized) and isinstance(times, int):
            spend(characters=len(values) * max(times, 0))


def check_sum(left: Any, right: Any) -> None:
    """Refuse a long text or list.

    Raises:
        TemplateLimitError: It is.
    """
    if isinstance(left, Sized) and isinstance(right, Sized):
        spend(characters=len(left) + len(right))


#: Filters and methods of text that fill up to a width: the result has as many characters, or elements.
_FILL = frozenset({"batch", "center", "ljust", "rjust", "slice", "zfill"})


def check_call(name: str, value: Any, arguments: Sequence[Any]) -> None:
    """Refuse a filter, or a method of a text, whose result is too large, before it is made.

    Args:
        name: The filter or the method.
        value: What it is applied to.
        arguments: Its arguments.

    Raises:
        TemplateLimitError: It is.
    """
    text = value if isinstance(value, str) else ""
    widths = [argument for argument in arguments if isinstance(argument, int)]
    texts = [argument for argument in arguments if isinstance(argument, str)]
    longest = max([0, *widths, *map(len, texts)])
    if name in _FILL:
        spend(steps=longest if name in ("batch", "slice") else 0, characters=len(text) + longest)
    elif name == "replace" and len(texts) >= 2:
        old, new = texts[:2]
        spend(characters=len(text) + (text.count(old) if old else len(text) + 1) * len(new))
    elif name == "indent":
        spend(characters=len(text) + (text.count("\n") + 1) * longest)
    elif name == "wordwrap":
        spend(characters=len(text) + len(text) * max([0, *map(len, texts)]))
    elif name == "expandtabs":
        spend(characters=len(text) + text.count("\t") * longest)
    elif name == "translate":
        tables = [argument for argument in arguments if isinstance(argument, Mapping)]
        parts = [len(part) for table in tables for part in table.values() if isinstance(part, str)]
        spend(characters=len(text) * max([1, *parts]))
    elif name == "format":
        check_percent(text)
    elif name == "sum" and any(isinstance(argument, Sized) for argument in arguments):
        raise TemplateLimitError("the filter 'sum' adds numbers, and found lists or texts")
    elif name == "round" and longest > 300:
        raise TemplateLimitError("the filter 'round' rounds to at most 300 digits")
    elif name == "split":
        spend(steps=(text.count(texts[0]) if texts and texts[0] else len(text) // 2) // 10)
    elif name == "splitlines":
        spend(steps=text.count("\n") // 10)
    elif name == "tojson" and longest > 100:
        raise TemplateLimitError("the filter 'tojson' indents by at most 100")


def check_joined(separator: str, texts: Sequence[Any]) -> None:
    """Refuse to join texts to too long a one.

    Raises:
        TemplateLimitError: It is too long.
    """
    lengths = sum(len(text) if isinstance(text, str) else 1 for text in texts)
    spend(steps=len(texts), characters=lengths + len(separator) * len(texts))


def check_percent(text: str) -> None:
    """Refuse places of a format, as `%` fills them, with widths or precisions of more than four digits, or `*`.

    Raises:
        TemplateLimitError: There is one.
    """
    found = _WIDE_PLACE.search(text)
    if found:
        raise TemplateLimitError(f"the format {found[0][:40]!r} has a width of more than four digits")


def check_format(spec: str) -> None:
    """Refuse a format's specification, as in `{:>9}`, with a width or a precision of more than four digits.

    Raises:
        TemplateLimitError: It has one.
    """
    if re.search(r"\d{5}", spec):
        raise TemplateLimitError(f"the format {spec[:40]!r} has a width of more than four digits")


def _check_bits(bits: int) -> None:
    if bits > _MAX_BITS:
        raise TemplateLimitError(f"it makes a whole number of more than {_MAX_BITS:,} bits")
