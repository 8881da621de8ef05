"""A first recipe of a classifier or a regression, for a data file with columns of text and of labels or numbers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from manytune.data.labels.numeric_labels import number_in
from manytune.data.records import Record
from manytune.data.rendering import field_reference, shorten
from manytune.training.starting_columns import text_columns
from manytune.training.starting_tags import head_recipe

_LABEL_NAMES = ("label", "labels", "class", "category", "sentiment", "intent", "target", "topic")
_NUMBER_NAMES = ("label", "score", "rating", "similarity", "similarity_score", "value", "target")
_MOST = 50  # labels of a column that is guessed to hold some
_ROWS_EACH = 4  # rows that a label has at least, on average
_LONGEST_NAME = 40


def labelled_columns(records: Sequence[Record]) -> tuple[str, str] | None:
    """The columns of text and of labels; None if there are none.

    Labels are a column of few short values: 2 to 50 different ones, which come at least four times on average, or those
    of a column that is called label, class or the like. The text is the column with the longest texts.
    """
    names = dict.fromkeys(name for record in records for name in record.fields)
    columns = {name: [record.fields.get(name) for record in records] for name in names}
    known = [name for name in names if _are_labels(columns[name], named=name.lower() in _LABEL_NAMES)]
    by_name = {name.lower(): name for name in known}
    label = next((by_name[name] for name in _LABEL_NAMES if name in by_name), None)
    if label is None and len(known) == 1:
        label = known[0]
    lengths = {
        name: sum(len(value) for value in columns[name] if isinstance(value, str))
        for name in text_columns(records)
        if name not in known
    }
    texts = list(lengths)
    return None if label is None or not texts else (max(texts, key=lengths.__getitem__), label)


def numeric_columns(records: Sequence[Record]) -> tuple[str, str] | None:
    """The columns of text and of numbers that it may be rated with; None if there are none.

    Numbers are the only column of them that has a fraction, or the one of these that is called score, rating or the
    like. The text is the column with the longest texts.
    """
    names = list(dict.fromkeys(name for record in records for name in record.fields))
    known = [name for name in names if _are_fractions([record.fields.get(name) for record in records])]
    by_name = {name.lower(): name for name in known}
    label = next((by_name[name] for name in _NUMBER_NAMES if name in by_name), None)
    if label is None and len(known) == 1:
        label = known[0]
    lengths: Counter[str] = Counter()
    for name in text_columns(records):
        if name not in known:
            lengths[name] = sum(
                len(value) for record in records if isinstance(value := record.fields.get(name), str)
            )
    return None if label is None or not lengths.total() else (lengths.most_common(1)[0][0], label)


def _are_fractions(values: Sequence[object]) -> bool:
    texts = [str(value) for value in values if isinstance(value, str | int | float)]
    numbers = [number_in(text) for text in texts]
    found = [number for number in numbers if number is not None]
    return len(found) == len(values) and any(number % 1 for number in found)


def _are_labels(values: Sequence[object], *, named: bool) -> bool:
    if not all(isinstance(value, str | int) for value in values):
        return False
    different = {str(value).strip() for value in values}
    short = all(0 < len(name) <= _LONGEST_NAME for name in different)
    often = named or len(values) >= _ROWS_EACH * len(different)
    return short and often and 2 <= len(different) <= min(_MOST, max(2, len(values) // 2))


def labelled_recipe(
    file: str,
    records: Sequence[Record],
    text: str,
    label: str,
    *,
    output: Path,
    shares: Sequence[str],
    numbers: bool = False,
) -> str:
    """A classifier's recipe, or a regression's, as YAML with comments.

    Args:
        file: The data file.
        records: Its rows.
        text: The column with the text.
        label: The column with the label.
        output: Where the recipe goes.
        shares: The lines of the rows that are set aside.
        numbers: Whether the labels are numbers.
    """
    given = [str(record.fields[label]).strip() for record in records]
    if numbers:
        found = sorted(map(float, given))
        listed = f"{found[0]:g} to {found[-1]:g}"
    else:
        counts = Counter(given)
        listed = shorten(", ".join(f"{name} {count:,}" for name, count in counts.most_common()), 90)
    return head_recipe(
        output=output,
        task=[
            f"# A guess: {text} is a text, and {label} its {'number' if numbers else 'label'}: {listed}.",
            "# For generated answers: task: generation, with data.prompt and data.completion.",
            f"task: {'regression' if numbers else 'classification'}",
        ],
        data=[
            f"  train: {json.dumps(file, ensure_ascii=False)}",
            f"  text: {json.dumps(field_reference(text))}",
            f"  label: {json.dumps(label)}",
            "  # In tokens; a longer text is cut at its end, and counted.",
        ],
        shares=shares,
        training=[
            "  # The number is learned with mean 0 and deviation 1; as it is with standardize: false"
            if numbers
            else "  # Where labels are rare: class_weights: balanced"
        ],
    )
