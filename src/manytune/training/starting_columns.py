"""Which of a table's columns is probably asked, and which answered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from manytune.data.labels.numeric_labels import number_in
from manytune.data.records import Record
from manytune.data.rendering import shorten
from manytune.errors import DataError

_QUESTIONS = (
    "prompt",
    "question",
    "input",
    "instruction",
    "document",
    "dialogue",
    "article",
    "text",
    "source",
)
_ANSWERS = ("completion", "answer", "output", "response", "summary", "highlights", "target", "label")
_CLASSES = ("target", "label")  # of which a column may also hold classes
_ABOUT_A_ROW = {"id", "idx", "index", "uuid", "guid", "key", "url", "link", "href", "split", "source_file"}
_ABOUT_A_ROW |= {"date", "time", "datetime", "timestamp", "created", "updated"}
_LONGEST_LIST = 200  # characters of columns in a message


def asked_and_answered(records: Sequence[Record], where: str) -> tuple[str, str]:
    """The columns that are probably asked and answered: by their names, else the longest texts.

    Args:
        records: The rows.
        where: What messages call them.

    Raises:
        DataError: There aren't two such columns.
    """
    columns = _columns(records)
    texts = sorted(_texts(columns), key=lambda name: -sum(map(len, _filled(columns[name]))))
    # A column that is called answer may hold numbers, as those to sums do.
    answered = _named([*texts, *columns], _ANSWERS) or (texts[1] if len(texts) > 1 else None)
    rest = [name for name in texts if name != answered]
    if answered is None or not rest:
        raise DataError(_too_few(list(columns), texts), where=where)
    return _named(rest, _QUESTIONS) or rest[0], answered


def are_named(records: Sequence[Record]) -> bool:
    """Whether the columns' names say what is asked and what is answered, and both are texts."""
    columns = _columns(records)
    texts = _texts(columns)
    answers = [name for name in _ANSWERS if name not in _CLASSES]
    return _named(texts, answers) is not None and _named(texts, _QUESTIONS) is not None


def text_columns(records: Sequence[Record]) -> list[str]:
    """The columns that hold texts, which aren't all numbers or addresses, and aren't about the row itself."""
    return _texts(_columns(records))


def are_rated(records: Sequence[Record]) -> bool:
    """Whether the rows are texts with a score each, and nothing else: that score is what is to be learned."""
    names = {name.strip().casefold() for record in records for name in record.fields}
    return names - _ABOUT_A_ROW == {"text", "score"}


def listed(names: Iterable[str]) -> str:
    """Columns for a message."""
    return shorten(", ".join(names), _LONGEST_LIST) or "none"


def _columns(records: Sequence[Record]) -> dict[str, list[object]]:
    names = dict.fromkeys(name for record in records for name in record.fields)
    return {name: [record.fields.get(name) for record in records] for name in names}


def _filled(values: Sequence[object]) -> list[str]:
    return [value for value in values if isinstance(value, str) and value.strip()]


def _texts(columns: Mapping[str, Sequence[object]]) -> list[str]:
    found = []
    for name, values in columns.items():
        filled = _filled(values)
        plain = [
            value
            for value in filled
            if number_in(value) is None and not value.startswith(("http://", "https://"))
        ]
        if plain and name.strip().casefold() not in _ABOUT_A_ROW:
            found.append(name)
    return found


def _too_few(columns: Sequence[str], texts: Sequence[str]) -> str:
    if not texts:
        return (
            f"no column holds texts (columns: {listed(columns)}), and a language model learns from texts. Add a column "
            "with a text for each row"
        )
    return (
        f"only the column {texts[0]!r} holds texts (columns: {listed(columns)}), so no answer to "
        "learn. Add a column with each row's answer or label; or, if the texts themselves are to be learned, call "
        "the column text and leave the others out"
    )


def _named(columns: Sequence[str], names: Sequence[str]) -> str | None:
    by_name = {column.strip().casefold(): column for column in reversed(columns)}
    return next((by_name[name] for name in names if name in by_name), None)
