"""Strict Jinja2 for one part of a prompt template: a field that is missing or not text is a named error."""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import jinja2
import jinja2.meta
from jinja2 import nodes

from manytune.data.jinja_text import MissingFieldError, TemplateText, TextEnvironment
from manytune.data.nearest import did_you_mean
from manytune.data.printable import AbsentNumber, UnprintableError, explain, is_absent, kind_of, printable
from manytune.errors import TemplateError
from manytune.template_limits import TemplateLimitError, limited


class EmptyPartError(TemplateError):
    """A template made nothing of a row."""


_ENVIRONMENT = TextEnvironment()
_OF_JINJA = {"and", "or", "not", "in", "is", "if", "else", "true", "false", "none", "True", "False", "None"}
_OF_JINJA |= {"fields", "loop", "self"}
_ALL = "fields"  # by this name a template reaches all of a row's fields


@functools.lru_cache(maxsize=256)
def compile_part(part: str, text: str) -> jinja2.Template:
    """Return the compiled template.

    Raises:
        TemplateError: It isn't valid Jinja2; the message names the part, the line and the line's text.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", SyntaxWarning
            )  # Python's, about the code that Jinja2 makes of `9[0]`
            return _ENVIRONMENT.compiled(text)
    except jinja2.TemplateSyntaxError as error:
        lines = text.splitlines() or [""]
        line = lines[min(error.lineno, len(lines)) - 1].strip()
        what = str(error.message).rstrip(".")
        raise TemplateError(
            f"the {part} template, line {error.lineno}, isn't valid: {what}: {shorten(line)!r}"
        ) from error
    except Exception as error:  # what is constant in a template is computed when it is compiled
        what = f"{type(error).__name__}: {shorten(str(error), 300)}"
        raise TemplateError(f"the {part} template isn't valid: {what}: {shorten(text)!r}") from error


@functools.lru_cache(maxsize=256)
def named_fields(text: str) -> frozenset[str]:
    """Return the fields that a template names."""
    return frozenset(jinja2.meta.find_undeclared_variables(_ENVIRONMENT.parse(text)))


@functools.lru_cache(maxsize=256)
def used_fields(text: str) -> frozenset[str] | None:
    """Return the fields that a template may use, those of `fields["name"]` too; None if that can be any of them."""
    tree = _ENVIRONMENT.parse(text)
    names = set(jinja2.meta.find_undeclared_variables(tree))
    if _ALL not in names:
        return frozenset(names)
    by_attribute = [(node.node, node.attr) for node in tree.find_all(nodes.Getattr)]
    by_item = [
        (node.node, node.arg.value)
        for node in tree.find_all(nodes.Getitem)
        if isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str)
    ]
    reached = [
        key for owner, key in by_attribute + by_item if isinstance(owner, nodes.Name) and owner.name == _ALL
    ]
    uses = sum(node.name == _ALL for node in tree.find_all(nodes.Name))
    return frozenset(names - {_ALL} | {*reached}) if len(reached) == uses else None


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


@dataclass(frozen=True, slots=True)
class RenderedPart:
    """What a template makes of a row.

    Attributes:
        text: All of it.
        written: The ranges of characters that are the template's own text, outside of what it prints of the row.
    """

    text: str
    written: tuple[tuple[int, int], ...] = ()


def render_part(part: str, text: str, values: Mapping[str, object]) -> str:
    """Return the text of `rendered_part`."""
    return rendered_part(part, text, values).text


def rendered_part(part: str, text: str, values: Mapping[str, object]) -> RenderedPart:
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
    if any(type(value) is float and value != value for value in values.values()):
        values = {
            name: AbsentNumber() if isinstance(value, float) and is_absent(value) else value
            for name, value in values.items()
        }
    try:
        with limited():
            rendered = _joined(template.generate({_ALL: values, **values}))
    except MissingFieldError as error:
        found = values if error.siblings is None else error.siblings
        raise TemplateError(f"the {part} template {no_field(error.name, found)}") from error
    except UnprintableError as error:
        raise TemplateError(f"the {part} template {explain(error, _named(text, values))}") from error
    except TemplateLimitError as error:
        raise TemplateError(f"the {part} template was stopped: {error}") from error
    except Exception as error:  # a template is the user's program: it can raise anything
        raise TemplateError(
            f"the {part} template failed: {type(error).__name__}: {shorten(str(error), 300)}"
            f"{_absent(_named(text, values))}"
        ) from error
    if not rendered.text.strip():
        raise EmptyPartError(f"the {part} is empty; its template is {shorten(text)!r}")
    return rendered


def _joined(pieces: Iterable[str]) -> RenderedPart:
    """What a template wrote, piece by piece, as one text."""
    texts: list[str] = []
    written: list[tuple[int, int]] = []
    end = 0
    for piece in pieces:
        texts.append(piece)
        start, end = end, end + len(piece)
        if isinstance(piece, TemplateText):
            touches = bool(written) and written[-1][1] == start
            written.append((written.pop()[0] if touches else start, end))
    return RenderedPart("".join(texts), tuple(written))


def field_as_text(purpose: str, name: str, values: Mapping[str, object]) -> str:
    """Return the text of a field that is used without a template.

    Args:
        purpose: What it is used for, for messages: `"group_by"`.
        name: The field.
        values: The row's fields.

    Raises:
        TemplateError: It is missing, null or not text.
    """
    if values.get(name) is None:
        raise TemplateError(f"{purpose} {no_field(name, values)}")
    try:
        return str(printable(values[name]))
    except UnprintableError as error:
        raise TemplateError(
            f"{purpose} needs text in the field {name!r}, which is {kind_of(error.value)}"
        ) from error


def field_reference(name: str) -> str:
    """Return the template that is a field's value: `{{ name }}`, or by way of `fields` if that isn't an identifier."""
    if name.isidentifier() and name not in _OF_JINJA:
        return f"{{{{ {name} }}}}"
    return f"{{{{ fields[{json.dumps(name, ensure_ascii=False)}] }}}}"


def no_field(name: str, values: Mapping[str, object]) -> str:
    """Return a message's end: that a row lacks a field, what it has instead, and what was likely meant."""
    if name in values:
        return f"needs the field {name!r}, which is null here"
    existing = ", ".join(map(str, values)) or "no fields"
    return f"needs the field {name!r}; this row has {existing}{did_you_mean(name, map(str, values))}"


def _named(text: str, values: Mapping[str, object]) -> dict[str, object]:
    """The row's fields that a template names; all of them if it names `fields`."""
    names = named_fields(text)
    return {name: value for name, value in values.items() if name in names or _ALL in names}


def _absent(named: Mapping[str, object]) -> str:
    """What may be behind any failure: that fields are null."""
    found = [f"{name!r} is {kind_of(value)}" for name, value in named.items() if is_absent(value)]
    return f" (the field {', '.join(found)})" if found else ""


def shorten(text: str, limit: int = 60) -> str:
    """Return the text, or its first characters and an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
