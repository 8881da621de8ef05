"""Columns that no template uses, though they seem to be meant: named, since they would be missing silently.

A named template such as `alpaca` takes the fields it knows. Rows that also have a `system` message or a `history` would
be trained on without them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from manytune.data.printable import is_absent
from manytune.data.records import Record
from manytune.data.rendering import field_reference, named_fields, shorten
from manytune.data.templates import PromptTemplate, RowForm
from manytune.errors import TemplateError

_NAMES = frozenset(
    {"system", "system_prompt", "system_message", "history", "messages", "conversation", "conversations"}
    | {
        "dialog",
        "dialogs",
        "dialogue",
        "turns",
        "chat",
        "tools",
        "functions",
        "tool_calls",
        "chat_template_kwargs",
    }
)
_FILE = re.compile(r"\S+\.(jinja2?|j2|txt|md|ya?ml|json)")
_TURN_KEYS = ({"role", "content"}, {"from", "value"})  # OpenAI's, and ShareGPT's


def unused_turns(records: Iterable[Record], templates: Iterable[RowForm]) -> dict[str, int]:
    """Return the columns that look like part of a conversation and that none of the templates uses.

    Args:
        records: The rows.
        templates: All templates or forms that the rows go through.

    Returns:
        In how many rows each of them isn't empty, by name.
    """
    used: set[str] = set()
    for template in templates:
        fields = template.fields_used()
        if fields is None:
            return {}
        used |= fields
    found: dict[str, int] = {}
    for record in records:
        for name, value in record.fields.items():
            if name not in used and _has_content(value) and (name.lower() in _NAMES or _are_turns(value)):
                found[name] = found.get(name, 0) + 1
    return found


def check_prompt(template: RowForm, record: Record) -> None:
    """Refuse a prompt that is the same for every row where a field or a file was meant.

    Args:
        template: A template; other forms have no such mistake.
        record: One of its rows.

    Raises:
        TemplateError: The prompt names no field, and holds a column's name as other languages write it in texts; or it
            is a file's name.
    """
    if not isinstance(template, PromptTemplate) or named_fields(template.prompt):
        return
    prompt = template.prompt.strip()
    for name in map(str, record.fields):
        column = re.escape(name)
        if prompt == name or re.search(
            rf"{{{column}}}|\$\{{?{column}\b|<{column}>|\[{column}\]|%\({column}\)", prompt
        ):
            raise TemplateError(
                f"the prompt template {shorten(prompt)!r} names no field, so that every row would have the same "
                f"prompt. Write the column {name!r} as {field_reference(name)}",
                where=record.where,
            )
    if _FILE.fullmatch(prompt):
        raise TemplateError(
            f"the prompt template is the text {shorten(prompt)!r} itself. A file with a template is named by "
            "data.template",
            where=record.where,
        )


def said_of_unused(found: Mapping[str, int]) -> str:
    """Return a sentence about what `unused_turns` found; empty if that is nothing."""
    if not found:
        return ""
    listed = ", ".join(f"{name} ({count:,} row{'' if count == 1 else 's'})" for name, count in found.items())
    return (
        f"the template doesn't use columns that look like part of the conversation: {listed}. To use one, write a "
        "prompt (or system) that names it"
    )


def _has_content(value: object) -> bool:
    return not is_absent(value) and (bool(value.strip()) if isinstance(value, str) else bool(value))


def _are_turns(value: object) -> bool:
    return (
        isinstance(value, list)
        and isinstance(value[0], Mapping)
        and any(k <= value[0].keys() for k in _TURN_KEYS)
    )
