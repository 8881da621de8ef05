"""From a record to an example: Jinja2 templates for the prompt and the completion.

A template names the record's fields: `Summarize: {{ document }}`. Fields whose names aren't identifiers are
reached through `fields`: `{{ fields["Reference summary"] }}`. Text outside the braces reaches the model as it
is written; no newline is added or taken away. Templates run in Jinja2's immutable sandbox.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol

import yaml

from manytune.data.conversation.conversation import Message, ToolCall
from manytune.data.nearest import did_you_mean
from manytune.data.records import Located, Record, Rejected
from manytune.data.rendering import (
    compile_part,
    field_as_text,
    named_fields,
    render_part,
    rendered_part,
    shorten,
    used_fields,
)
from manytune.data.row_errors import row_error
from manytune.errors import DataError, TemplateError, reason_of

_FILES = {".yaml", ".yml", ".json"}

Segment = Message
"""One message of a prompt."""


@dataclass(frozen=True)
class Example(Located):
    """A prompt and the completion to learn; or a conversation, of which the completion is the last answer.

    Without a prompt's messages it is a document, every token of which is learned.

    Args:
        segments: The prompt's messages, in order; for a conversation all before its last answer.
        completion: The text that bears the loss, without an end token.
        source: The file or dataset that the row came from.
        row: Its line or record number, from 1.
        group: Examples of one group stay together in splits; `None` for no group.
        task: Which task of a mixture it belongs to; `None` for the only one.
        tools: The functions that the assistant may call.
        tool_calls: Those that the completion calls.
        reasoning: What comes before the completion's text, for chat templates that take it.
        earlier: Places in `segments` of answers that bear the loss, too.
        references: Further answers that count as right when answers are scored.
        template_kwargs: Values of the chat template's variables, in place of the base's or the recipe's.
    """

    segments: tuple[Segment, ...]
    completion: str
    source: str
    row: int
    group: str | None = None
    task: str | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    reasoning: str | None = None
    earlier: tuple[int, ...] = ()
    references: tuple[str, ...] = ()
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_document(self) -> bool:
        """Whether it is running text and not the answer to something."""
        return not self.segments

    @property
    def answer(self) -> Message:
        """The completion as the assistant's message."""
        return Message("assistant", self.completion, self.reasoning, tool_calls=self.tool_calls)

    def turns(self) -> tuple[Example, ...]:
        """Every answer that bears the loss, each with what comes before it, in order; the last is the completion."""
        return (*(self.ending_at(place) for place in self.earlier), replace(self, earlier=()))

    def ending_at(self, place: int) -> Example:
        """The conversation up to one of its earlier answers, which alone bears the loss."""
        last = self.segments[place]
        return replace(
            self,
            segments=self.segments[:place],
            completion=last.text,
            tool_calls=last.tool_calls,
            reasoning=last.reasoning,
            earlier=(),
            references=(),
        )


class RowForm(Protocol):
    """How a row becomes an example: a template, or one of the forms in which conversations come."""

    def render(self, record: Record) -> Example:
        """Return the example that a record makes.

        Raises:
            DataError: The record doesn't have this form.
        """

    def fields_used(self) -> frozenset[str] | None:
        """Return the fields that are looked at; None if that can be any of them."""

    def grouped_by(self, field: str) -> RowForm:
        """Return the same with another field whose value keeps rows together."""


@dataclass(frozen=True)
class Rendered:
    """What became of many records: examples, and the rows that the template didn't fit."""

    kept: tuple[Example, ...]
    rejected: tuple[Rejected, ...]


@dataclass(frozen=True)
class PromptTemplate:
    """How a record becomes an example.

    Args:
        prompt: Jinja2 template of the user's message.
        completion: Jinja2 template of the answer to learn.
        system: Jinja2 template of a system message, or `None` for no such message.
        group_by: The field whose value keeps rows together in splits, or `None`.
        references: Fields with answers that count as right when answers are scored, each a text or a list of texts.

    Raises:
        TemplateError: A part isn't valid Jinja2, or the completion names no field.
    """

    prompt: str
    completion: str
    system: str | None = None
    group_by: str | None = None
    references: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for part, text in self._parts().items():
            compile_part(part, text)
        if not named_fields(self.completion):
            raise TemplateError(
                f"the completion template names no field, so that every row would teach the same text: "
                f"{shorten(self.completion)!r}. Write fields in double braces, as in {{{{ summary }}}}"
            )

    def render(self, record: Record) -> Example:
        """Return the example that a record makes.

        Raises:
            TemplateError: A field is missing or can't be printed, or the prompt or the completion is empty.
        """
        try:
            return Example(
                segments=self.render_prompt(record.fields),
                completion=render_part("completion", self.completion, record.fields),
                source=record.source,
                row=record.row,
                group=self._group(record.fields),
                references=references_in(record.fields, self.references),
            )
        except TemplateError as error:
            raise type(error)(str(error), where=record.where) from error

    def render_prompt(self, fields: Mapping[str, object]) -> tuple[Segment, ...]:
        """Return the prompt alone, as serving needs it: the fields of the completion may be absent.

        Raises:
            TemplateError: A field is missing or can't be printed, or the prompt is empty.
        """
        user = rendered_part("prompt", self.prompt, fields)
        segments = (Segment("user", user.text, written=user.written),)
        if self.system is None:
            return segments
        system = rendered_part("system", self.system, fields)
        return (Segment("system", system.text, written=system.written), *segments)

    def fields_used(self) -> frozenset[str] | None:
        """Return the fields that the template's parts may use; None if that can be any of them."""
        found = {*self.references, *filter(None, [self.group_by])}
        for text in self._parts().values():
            fields = used_fields(text)
            if fields is None:
                return None
            found |= fields
        return frozenset(found)

    def grouped_by(self, field: str) -> PromptTemplate:
        """Return the same with another field whose value keeps rows together."""
        return replace(self, group_by=field)

    def to_dict(self) -> dict[str, str]:
        """Return the texts that are set, ready for JSON; `references` are a recipe's, and no part of a prompt."""
        parts = self._parts()
        return parts if self.group_by is None else {**parts, "group_by": self.group_by}

    @classmethod
    def from_dict(cls, parts: Mapping[str, object]) -> PromptTemplate:
        """Return the template that `to_dict` described.

        Raises:
            TemplateError: A key is unknown or missing, a value isn't text, or a part isn't valid Jinja2.
        """
        known = [field.name for field in fields(cls)]
        for key, value in parts.items():
            if key not in known:
                raise TemplateError(
                    f"a template has the keys {', '.join(known)}, not {key!r}{did_you_mean(str(key), known)}"
                )
            optional = key in ("system", "group_by", "references")
            is_list = key == "references" and isinstance(value, list | tuple)
            if not isinstance(value, str) and not (optional and value is None) and not is_list:
                raise TemplateError(f"the template's {key} must be text, not {type(value).__name__}")
        for key in ("prompt", "completion"):
            if key not in parts:
                raise TemplateError(f"a template needs the keys prompt and completion; {key} is missing")
        listed = parts.get("references") or ()
        references = (listed,) if isinstance(listed, str) else tuple(map(str, listed))  # type: ignore[call-overload]
        return cls(**{**parts, "references": references})  # type: ignore[arg-type]  # checked above

    def _parts(self) -> dict[str, str]:
        parts = {"prompt": self.prompt, "completion": self.completion}
        return parts if self.system is None else {**parts, "system": self.system}

    def _group(self, values: Mapping[str, object]) -> str | None:
        return None if self.group_by is None else field_as_text("group_by", self.group_by, values)


def references_in(fields: Mapping[str, object], names: Iterable[str]) -> tuple[str, ...]:
    """Return the answers in fields that hold a text or a list of texts each, without repetition.

    Raises:
        TemplateError: A field is missing, or holds something else.
    """
    found: list[str] = []
    for name in names:
        value = fields.get(name)
        if isinstance(value, list) and all(isinstance(text, str) for text in value):
            found += value
        else:
            found.append(field_as_text("references", name, fields))
    return tuple(dict.fromkeys(found))


def render_all(
    template: RowForm, records: Iterable[Record], *, on_error: Literal["error", "skip"] = "error"
) -> Rendered:
    """Render many records.

    Args:
        template: The template, or another form.
        records: The rows.
        on_error: `"error"` raises if the template doesn't fit a row; `"skip"` returns such rows.

    Raises:
        DataError: A row doesn't fit, and `on_error` is `"error"`.
    """
    kept: list[Example] = []
    rejected: list[Rejected] = []
    first: DataError | None = None
    for record in records:
        try:
            kept.append(template.render(record))
        except DataError as error:
            first = first or error
            reason = str(error).removeprefix(f"{record.where}: ")
            rejected.append(Rejected(record.source, record.row, reason))
    if first is not None and on_error == "error":
        raise row_error(first, failed=len(rejected), rows=len(kept) + len(rejected)) from first
    return Rendered(tuple(kept), tuple(rejected))


NAMED_TEMPLATES: Mapping[str, PromptTemplate] = MappingProxyType(
    {
        "alpaca": PromptTemplate(
            prompt="{{ instruction }}{% if input is defined and input %}\n\n{{ input }}{% endif %}",
            completion="{{ output }}",
        ),
        "prompt-completion": PromptTemplate(prompt="{{ prompt }}", completion="{{ completion }}"),
        "question-answer": PromptTemplate(
            prompt="{% if context is defined and context %}{{ context }}\n\n{% endif %}{{ question }}",
            completion="{{ answer }}",
        ),
        "summarize": PromptTemplate(
            prompt="Summarize the following text.\n\n{{ document }}", completion="{{ summary }}"
        ),
    }
)
"""Templates by name, for rows with the customary fields."""


def named_template(name: str) -> PromptTemplate:
    """Return one of `NAMED_TEMPLATES`.

    Raises:
        TemplateError: There is no such template; the message lists them.
    """
    if name not in NAMED_TEMPLATES:
        raise TemplateError(
            f"no template is named {name!r}{did_you_mean(name, NAMED_TEMPLATES)} "
            f"Known: {', '.join(NAMED_TEMPLATES)}; or give a .yaml or .json file"
        )
    return NAMED_TEMPLATES[name]


def choose_template(
    name: str | None = None,
    *,
    prompt: str | None = None,
    completion: str | None = None,
    system: str | None = None,
    group_by: str | None = None,
    references: tuple[str, ...] = (),
) -> PromptTemplate | None:
    """Return the template that a user describes, or `None` if nothing is described.

    Args:
        name: A named template or a template file; instead of `prompt` and `completion`.
        prompt: As in `PromptTemplate`.
        completion: As in `PromptTemplate`.
        system: As in `PromptTemplate`; put in place of the named template's own.
        group_by: As in `PromptTemplate`; put in place of the named template's own.
        references: As in `PromptTemplate`; put in place of the named template's own.

    Raises:
        TemplateError: The description is incomplete or double, or the template can't be used.
    """
    if name is not None and (prompt is not None or completion is not None):
        raise TemplateError("give either a template, or prompt and completion")
    if (prompt is None) != (completion is None):
        missing = "prompt" if prompt is None else "completion"
        raise TemplateError(f"prompt and completion go together; the {missing} is missing")
    if prompt is not None and completion is not None:
        return PromptTemplate(prompt, completion, system, group_by, references)
    if name is None:
        if system is not None:
            raise TemplateError("a system message goes with a template, or with prompt and completion")
        return None
    found = load_template(name) if Path(name).suffix in _FILES else named_template(name)
    return replace(
        found,
        system=system or found.system,
        group_by=group_by or found.group_by,
        references=references or found.references,
    )


def load_template(file: str | Path) -> PromptTemplate:
    """Return the template in a YAML or JSON file, which has the fields of `PromptTemplate` as keys.

    Raises:
        TemplateError: The file can't be read, or isn't such a mapping.
    """
    path = Path(file)
    try:
        text = path.read_text(encoding="utf-8-sig")
        parts = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, yaml.YAMLError) as error:
        raise TemplateError(
            f"the template file can't be read: {reason_of(error)}", where=str(file)
        ) from error
    if not isinstance(parts, dict):
        raise TemplateError(
            f"a template file holds the keys prompt and completion, not a {type(parts).__name__}",
            where=str(file),
        )
    try:
        return PromptTemplate.from_dict(parts)
    except TemplateError as error:
        raise TemplateError(str(error), where=str(file)) from error
