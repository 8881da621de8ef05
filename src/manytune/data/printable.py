"""Which of a row's values have a text form that a model should see, and what is said of the others.

Text, numbers, booleans, dates and times print as Python writes them. Null and NaN are absent values, and lists,
objects, bytes and functions would print as Python source: none of these becomes text by itself.
"""

from __future__ import annotations

import datetime
import numbers
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import jinja2

_WITH_TEXT_FORM = (
    str,
    numbers.Number,
    datetime.date,  # a datetime is one
    datetime.time,
    datetime.timedelta,
    uuid.UUID,
    jinja2.Undefined,  # raises an error of its own
)
_SEARCHED = 10_000  # values of a row that a message's search looks at
_NAMED = 3  # fields that a message names


class UnprintableError(jinja2.TemplateRuntimeError):
    """A template would make text of a value that has no text form.

    Attributes:
        value: The value.
        through: What would have, such as "the filter 'trim'"; None if the template prints it directly.
    """

    def __init__(self, value: object, through: str | None = None) -> None:
        super().__init__(type(value).__name__)
        self.value = value
        self.through = through


class AbsentNumber(float):
    """NaN that is false in a condition, as null is."""

    def __new__(cls) -> AbsentNumber:
        """NaN, whatever is asked."""
        return super().__new__(cls, "nan")

    def __bool__(self) -> bool:
        return False


def is_absent(value: object) -> bool:
    """Whether a value is null or NaN, which Parquet files have in the place of null."""
    return value is None or (isinstance(value, numbers.Number) and bool(value != value))


def printable(value: Any, through: str | None = None) -> Any:
    """Return a value that has a text form.

    Args:
        value: Any value.
        through: As in `UnprintableError`.

    Raises:
        UnprintableError: It has none.
    """
    if type(value) is str or type(value) is int:
        return value
    if is_absent(value) or not isinstance(value, _WITH_TEXT_FORM):
        raise UnprintableError(value, through)
    return value


def present(value: Any, through: str | None = None) -> Any:
    """Return a value that isn't null or NaN.

    Raises:
        UnprintableError: It is.
    """
    if is_absent(value):
        raise UnprintableError(value, through)
    return value


def explain(error: UnprintableError, named: Mapping[str, object]) -> str:
    """Return a message's end: which field it was, what it is, and the way to print it.

    Args:
        error: What happened.
        named: The row's fields that the template names.
    """
    value = error.value
    paths = list(islice(_paths(value, named), _NAMED))
    if len(paths) == 1:
        which = f"the field {paths[0]!r}"
    else:
        which = f"one of the fields {', '.join(map(repr, paths))}" if paths else "an expression"
    kind, way_out = kind_of(value), _way_out(value, paths[0] if len(paths) == 1 else "field")
    if error.through is None:
        return f"prints {which}, which is {kind}; {way_out}"
    return f"gives {which}, which is {kind}, to {error.through}; {way_out}"


def kind_of(value: object) -> str:
    """Return what a value without a text form is, as in "which is ..."."""
    if is_absent(value):
        return "null here" if value is None else "NaN here"
    if isinstance(value, Mapping):
        return f"an object with {', '.join(map(str, value)) or 'no keys'}"
    if isinstance(value, bytes | bytearray):
        return "bytes"
    if callable(value):
        return "a function"
    if not isinstance(value, Iterable):
        return f"an object of type {type(value).__name__}"
    first = _first_object(value)
    if first is not None:
        return f"a list of objects with {', '.join(map(str, first))}"
    return "a list" if not isinstance(value, Sequence) or value else "an empty list"


def _way_out(value: object, field: str) -> str:
    """How a template can print a value that has no text form."""
    as_json = f"print it as JSON: {{{{ {field} | tojson }}}}"
    if is_absent(value):
        if not field.endswith("]") or field.startswith("fields["):
            return f"give it a default: {{{{ {field} | default('...') }}}}"
        whole = field.rpartition("[")[0]
        return f"leave such elements out: {{{{ {whole} | reject('none') | join(' ') }}}}"
    if isinstance(value, Mapping):
        return f"name one of them, or {as_json}"
    if isinstance(value, bytes | bytearray):
        return f"decode it first: {{{{ {field}.decode() }}}}"
    if callable(value):
        return "a key of that name is reached as {{ field['key'] }}"
    if not isinstance(value, Iterable):
        return "it has no text form"
    first = _first_object(value)
    if first is not None:
        printed = ": ".join(f"{{{{ {_key('one', key)} }}}}" for key in islice(first, 2))
        return f"loop over it: {{% for one in {field} %}}{printed} {{% endfor %}}, or {as_json}"
    if isinstance(value, Sequence) and not all(isinstance(element, _WITH_TEXT_FORM) for element in value):
        return as_json
    return f"join it: {{{{ {field} | join(' ') }}}}"


def _first_object(value: Iterable[object]) -> Mapping[object, object] | None:
    if not isinstance(value, Sequence):
        return None  # it may be an iterator, which looking would use up
    return next((element for element in value if isinstance(element, Mapping) and element), None)


def _paths(wanted: object, named: Mapping[str, object]) -> Iterator[str]:
    """Where in the fields a value is, as a template writes it: `messages[0].content`."""

    def found(value: object) -> bool:
        both_absent = is_absent(wanted) and is_absent(value)
        return value is wanted or (both_absent and (value is None) == (wanted is None))

    pending = [(_top(name), value) for name, value in reversed([*named.items()])]
    for _ in range(_SEARCHED):
        if not pending:
            return
        path, value = pending.pop()
        if found(value):
            yield path
        elif isinstance(value, Mapping):
            pending += [(_key(path, key), inner) for key, inner in reversed([*value.items()])]
        elif isinstance(value, list | tuple):
            pending += [(f"{path}[{place}]", inner) for place, inner in reversed([*enumerate(value)])]


def _top(name: str) -> str:
    return name if name.isidentifier() else f"fields[{name!r}]"


def _key(path: str, key: object) -> str:
    return f"{path}.{key}" if isinstance(key, str) and key.isidentifier() else f"{path}[{key!r}]"
