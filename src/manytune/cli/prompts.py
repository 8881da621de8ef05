"""Prompts that are given on the command line: words, fields of a template, or a file of rows with such fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from manytune.errors import TemplateError

if TYPE_CHECKING:
    from manytune.cli.chosen import Chosen
    from manytune.data.encoding.chat_template import Tools
    from manytune.data.templates import Segment


_FIELDS = "fields"


@dataclass(frozen=True)
class Asked:
    """One prompt as the user gave it.

    Attributes:
        where: Where it came from.
        text: The same words for every system; None if there are fields instead.
        fields: Fields for each adapter's own template.
    """

    where: str
    text: str | None
    fields: Mapping[str, object]


def prompts_from(prompt: str | None, fields: Sequence[str], file: str | None) -> list[Asked]:
    """The prompts of whichever is given.

    Args:
        prompt: Words.
        fields: Texts like `NAME=VALUE`.
        file: Rows: a file or a `datasets` name.

    Raises:
        DataError: The file can't be read.
    """
    from manytune.data.readers import read_role

    if prompt is not None:
        return [Asked("prompt", prompt, {})]
    if file is not None:
        return [Asked(record.where, None, record.fields) for record in read_role(file, "test").kept]
    values = {}
    for text in fields:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"expected NAME=VALUE, found {text!r}", param_hint="--field")
        values[name] = value
    return [Asked(_FIELDS, None, values)]


def prompt_of(asked: Asked, adapter: Chosen, task: str | None) -> tuple[tuple[Segment, ...], Tools]:
    """A prompt's messages and tools, as an adapter's template or form makes them of fields; words go through none.

    A conversation is asked up to its last message, or up to its last answer if it ends with that.

    Args:
        asked: The prompt.
        adapter: Whose template.
        task: Which one, of an adapter that was trained on several tasks.

    Raises:
        DataError: The template or the form doesn't fit the fields.
        StoreError: The adapter has no such template.
    """
    from manytune.data.conversation.form import ConversationForm
    from manytune.data.records import Record
    from manytune.data.templates import Segment

    if asked.text is not None:
        return (Segment("user", asked.text),), ()
    form = None if asked.where == _FIELDS else adapter.form(task)
    if isinstance(form, ConversationForm):
        source, _, row = asked.where.rpartition(":")
        conversation = form.conversation(Record(asked.fields, source, int(row) if row.isdecimal() else 0))
        ends = conversation.messages[-1].is_answer
        return conversation.messages[: -1 if ends else None], conversation.tools
    try:
        return adapter.template(task).render_prompt(asked.fields), ()
    except TemplateError as error:
        raise TemplateError(f"{adapter.name}'s template: {error}", where=asked.where) from error
