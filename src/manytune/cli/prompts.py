"""Prompts that are given on the command line: words, fields of a template, or a file of rows with such fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from manytune.cli.chosen import Chosen
    from manytune.data.templates import Segment


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
    return [Asked("fields", None, values)]


def segments_of(asked: Asked, adapter: Chosen, task: str | None) -> tuple[Segment, ...]:
    """A prompt as an adapter's template renders it; words go through no template.

    Args:
        asked: The prompt.
        adapter: Whose template.
        task: Which one, of an adapter that was trained on several tasks.

    Raises:
        TemplateError: The template doesn't fit the fields.
        StoreError: The adapter has no such template.
    """
    from manytune.data.templates import Segment
    from manytune.errors import TemplateError

    if asked.text is not None:
        return (Segment("user", asked.text),)
    try:
        return adapter.template(task).render_prompt(asked.fields)
    except TemplateError as error:
        raise TemplateError(f"{adapter.name}'s template: {error}", where=asked.where) from error
