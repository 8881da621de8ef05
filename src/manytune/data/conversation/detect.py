"""Which form a file's rows have, by their columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import cast, get_args

from manytune.data.conversation.form import DESCRIPTIONS, ConversationForm, FormName
from manytune.data.conversation.values import from_json
from manytune.data.printable import is_absent
from manytune.data.records import Record
from manytune.data.templates import NAMED_TEMPLATES, RowForm
from manytune.errors import DataError

_LOOKED_AT = 100  # rows; a file's first may lack an optional column
# Columns next to `text` that say where a document is from. Any other, such as a label, may be what is to be learned.
_ABOUT_A_TEXT = {
    "id",
    "idx",
    "index",
    "url",
    "source",
    "title",
    "date",
    "timestamp",
    "created",
    "lang",
    "language",
}
_ABOUT_A_TEXT |= {
    "meta",
    "metadata",
    "author",
    "license",
    "dump",
    "file_path",
    "token_count",
    "score",
    "added",
}


def detect(records: Sequence[Record]) -> FormName | str | None:
    """Return the name of the rows' form, or of the template for such rows; None if the columns say nothing.

    Args:
        records: The rows.

    Returns:
        One of the forms of conversations, or one of `prompt-completion`, `question-answer` and `summarize`.
    """
    fields = _filled(records)
    if _is_list(fields, "messages"):
        return "openai"
    if _is_list(fields, "conversations") or _is_list(fields, "conversation"):
        return "sharegpt"
    if _is_list(fields, "prompt") or _is_list(fields, "completion"):
        return "trl"
    if {"prompt", "completion"} <= fields.keys():
        return "prompt-completion"
    if {"instruction", "output"} <= fields.keys():
        return "alpaca"
    if {"question", "answer"} <= fields.keys():
        return "question-answer"
    if {"document", "summary"} <= fields.keys():
        return "summarize"
    if isinstance(fields.get("text"), str) and {name.lower() for name in fields} - _ABOUT_A_TEXT == {"text"}:
        return "text"
    return None


def form_of(records: Sequence[Record]) -> RowForm | None:
    """Return how rows become examples, if their columns say it beyond doubt; None otherwise.

    That is a form of conversations, or the template for rows with a prompt and a completion.
    """
    found = detect(records)
    if found == "prompt-completion":
        return NAMED_TEMPLATES[found]
    return ConversationForm(cast(FormName, found)) if found in get_args(FormName) else None


def unknown_form(records: Sequence[Record], where: str) -> DataError:
    """Return the error that the columns say nothing about what is asked and what is answered."""
    columns = ", ".join(_filled(records)) or "none"
    forms = "; ".join(f"{name}: {said}" for name, said in DESCRIPTIONS.items())
    return DataError(
        f"the rows have the columns {columns}, which don't say what is asked and what is answered. Write data.prompt "
        "and data.completion, such as '{{ document }}' and '{{ summary }}', or give the rows one of the forms that are "
        f"recognised ({forms})",
        where=where,
    )


def _filled(records: Iterable[Record]) -> dict[str, object]:
    """The first value of each column that has one."""
    found: dict[str, object] = {}
    for record, _ in zip(records, range(_LOOKED_AT), strict=False):
        for name, value in record.fields.items():
            if name not in found and not is_absent(value):
                found[name] = value
    return found


def _is_list(fields: Mapping[str, object], name: str) -> bool:
    value = from_json(fields.get(name))
    return isinstance(value, list) and all(isinstance(item, Mapping) for item in value)
