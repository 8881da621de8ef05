"""Strict Jinja2 for one part of a prompt template: a field that is missing or not text is a named error."""

from __future__ import annotations

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jinja2
import jinja2.meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from manytune.data.nearest import did_you_mean
from manytune.errors import TemplateError


class EmptyPartError(TemplateError):
    """A template made nothing of a row."""


class _MissingFieldError(jinja2.UndefinedError):
    """A template used a name that isn't there."""

    def __init__(self, name: str, siblings: Mapping[str, object] | None) -> None:
        super().__init__(name)
        self.name = name
        self.siblings = siblings  # what a nested object holds instead; None at the top level


class _UnprintableError(jinja2.TemplateRuntimeError):
    """A template printed a value that has no text form a model should see."""

    def __init__(self, value: object) -> None:
        super().__init__(type(value).__name__)
        self.value = value


class _StrictField(jinja2.StrictUndefined):
    """A missing field: any use of it raises, with its name."""

    def __init__(
        self,
        hint: str | None = None,
        obj: Any = jinja2.utils.missing,
        name: str | None = None,
        exc: type[jinja2.TemplateRuntimeError] = jinja2.UndefinedError,
    ) -> None:
        super().__init__(hint, obj, name, exc)
        nested = obj is not jinja2.utils.missing
        if exc is jinja2.UndefinedError and name is not None and (not nested or isinstance(obj, Mapping)):
            siblings = obj if nested else None
            self._undefined_exception = lambda _: _MissingFieldError(str(name), siblings)  # type: ignore[assignment]


def _printable(value: object) -> object:
    """Refuse what Jinja2 would print as Python source: None, lists, mappings, bytes, functions."""
    if isinstance(value, (str, jinja2.Undefined)):
        return value
    if value is None or callable(value) or isinstance(value, Iterable):
        raise _UnprintableError(value)
    return value


@jinja2.pass_context
def _choice(context: jinja2.runtime.Context, options: Sequence[object]) -> object:
    """One of the options, the same one whenever a row with these fields is rendered."""
    fields = json.dumps(context["fields"], sort_keys=True, default=repr)
    digest = hashlib.blake2b(f"{fields} {options!r}".encode(), digest_size=8).digest()
    return options[int.from_bytes(digest) % len(options)]


def _most_frequent(items: Iterable[object]) -> list[object]:
    """The items that occur most often, in the order of their first occurrence."""
    counts = Counter(items)
    return [item for item, count in counts.items() if count == max(counts.values())]


_ENVIRONMENT = ImmutableSandboxedEnvironment(
    undefined=_StrictField, finalize=_printable, keep_trailing_newline=True, autoescape=False
)
_ENVIRONMENT.globals.clear()  # a missing field named "dict" or "range" must not be found there
_ENVIRONMENT.filters |= {"choice": _choice, "most_frequent": _most_frequent}  # promptsource's


@functools.lru_cache(maxsize=256)
def compile_part(part: str, text: str) -> jinja2.Template:
    """Return the compiled template.

    Raises:
        TemplateError: It isn't valid Jinja2; the message names the part, the line and the line's text.
    """
    try:
        return _ENVIRONMENT.from_string(text)
    except jinja2.TemplateSyntaxError as error:
        lines = text.splitlines() or [""]
        line = lines[min(error.lineno, len(lines)) - 1].strip()
        what = str(error.message).rstrip(".")
        raise TemplateError(
            f"the {part} template, line {error.lineno}, isn't valid: {what}: {shorten(line)!r}"
        ) from error


@functools.lru_cache(maxsize=256)
def named_fields(text: str) -> frozenset[str]:
    """Return the fields that a template names."""
    return frozenset(jinja2.meta.find_undeclared_variables(_ENVIRONMENT.parse(text)))


def tokens(text: str) -> Iterator[tuple[str, str]]:
    """Yield a template's tokens as pairs of kind and text; the texts joined are the template again.

    Raises:
        jinja2.TemplateSyntaxError: A brace isn't closed, or a character means nothing.
    """
    yield from ((kind, value) for _, kind, value in _ENVIRONMENT.lex(text))


def called_functions(text: str) -> list[str]:
    """Return the names that a template calls as functions; the environment has none."""
    calls = _ENVIRONMENT.parse(text).find_all(jinja2.nodes.Call)
    return sorted({call.node.name for call in calls if isinstance(call.node, jinja2.nodes.Name)})


def render_part(part: str, text: str, values: Mapping[str, object]) -> str:
    """Return a template filled with a row's fields.

    Args:
        part: What the template makes, for messages: `"prompt"`, `"completion"` or `"system"`.
        text: The template.
        values: The row's fields.

    Raises:
        TemplateError: A field is missing, null or not text, or the template fails.
        EmptyPartError: The result is empty.
    """
    template = compile_part(part, text)
    try:
        rendered = template.render({"fields": values, **values})
    except _MissingFieldError as error:
        found = values if error.siblings is None else error.siblings
        raise TemplateError(f"the {part} template {no_field(error.name, found)}") from error
    except _UnprintableError as error:
        raise TemplateError(
            f"the {part} template {_not_text(error.value, named_fields(text), values)}"
        ) from error
    except Exception as error:  # a template is the user's program: it can raise anything
        raise TemplateError(f"the {part} template failed: {type(error).__name__}: {error}") from error
    if not rendered.strip():
        raise EmptyPartError(f"the {part} is empty; its template is {shorten(text)!r}")
    return rendered


def no_field(name: str, values: Mapping[str, object]) -> str:
    """Return a message's end: that a row lacks a field, what it has instead, and what was likely meant."""
    if name in values:
        return f"needs the field {name!r}, which is null here"
    existing = ", ".join(map(str, values)) or "no fields"
    return f"needs the field {name!r}; this row has {existing}{did_you_mean(name, map(str, values))}"


def _not_text(value: object, named: frozenset[str], values: Mapping[str, object]) -> str:
    culprits = [repr(name) for name in sorted(named) if name in values and values[name] is value]
    what = f"the field {culprits[0]}" if culprits else "an expression"
    if value is None:
        return f"prints {what}, which is null here; give it a default: {{{{ field or '...' }}}}"
    if isinstance(value, Mapping):
        return f"prints {what}, which is an object with {', '.join(map(str, value))}; name one of them"
    if isinstance(value, bytes):
        return f"prints {what}, which is bytes; decode it first"
    if callable(value):
        return f"prints {what}, which is a function; a key of that name is reached as {{{{ field['key'] }}}}"
    return f"prints {what}, which is a list; join it: {{{{ field | join(' ') }}}}"


def shorten(text: str, limit: int = 60) -> str:
    """Return the text, or its beginning and an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
