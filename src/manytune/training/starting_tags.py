"""A first recipe of a classifier of words, for a data file with lists of words and of their tags."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from manytune.data.records import Record
from manytune.data.rendering import shorten

#: The sections of a recipe that say how a new head is trained.
_HOW_A_HEAD_TRAINS = (
    "method:",
    "  # Others: docs/methods.md. The new head trains in full with any.",
    "  name: lora",
    "  r: 8",
    "  lora_alpha: 16",
    "  target_modules: all-linear",
    "",
    "training:",
    "  epochs: 3",
    "  batch_size: 16",
    "  learning_rate: 1e-3",
)


def tagged_columns(records: Sequence[Record]) -> tuple[str, str] | None:
    """The columns of words and of their tags; None if there are none.

    Both are lists, as long as one another in every row. Words are texts, and tags, texts or numbers, have fewer
    different values.
    """
    lists = {name: found for name in _names(records) if (found := _lists(records, name))}
    different = {name: len({str(one) for row in rows for one in row}) for name, rows in lists.items()}
    for words in sorted(lists, key=different.__getitem__, reverse=True):
        texts = all(isinstance(one, str) for row in lists[words] for one in row)
        for tags in lists if texts else ():
            alike = [len(row) for row in lists[words]] == [len(row) for row in lists[tags]]
            if alike and 2 <= different[tags] < different[words]:
                return words, tags
    return None


def tagged_recipe(
    file: str, records: Sequence[Record], words: str, tags: str, *, output: Path, shares: Sequence[str]
) -> str:
    """A recipe of a classifier of words, as YAML with comments.

    Args:
        file: The data file.
        records: Its rows.
        words: The column with the words.
        tags: The column with their tags.
        output: Where the recipe goes.
        shares: The lines of the rows that are set aside.
    """
    given = [one for row in _lists(records, tags) for one in row]
    listed = shorten(", ".join(f"{name} {count:,}" for name, count in Counter(given).most_common()), 90)
    numbers = all(isinstance(one, int) for one in given)
    naming = ["  # Name the numbers: tag_names: [O, B-PER, I-PER]"] if numbers else []
    return head_recipe(
        output=output,
        task=[
            f"# A guess: {words} are words, and {tags} a tag for each: {listed}.",
            "task: token-classification",
        ],
        data=[
            f"  train: {json.dumps(file, ensure_ascii=False)}",
            f"  tokens: {json.dumps(words)}",
            f"  tags: {json.dumps(tags)}",
            *naming,
            "  # In tokens; the words of a longer text that are cut off aren't learned.",
        ],
        shares=shares,
    )


def head_recipe(
    *,
    output: Path,
    task: Sequence[str],
    data: Sequence[str],
    shares: Sequence[str],
    training: Sequence[str] = (),
) -> str:
    """A recipe that trains a new head, as YAML with comments.

    Args:
        output: Where the recipe goes.
        task: The lines of the task.
        data: The first lines of the data section; the last one is about what is cut off.
        shares: The lines of the rows that are set aside.
        training: The last lines of the training section.
    """
    lines = [
        f"# manytune train {output}",
        f"# then: manytune evaluate runs/{output.stem}",
        "",
        "# A hub id or a directory: an encoder such as BERT, or a model that writes text, as embedded is.",
        "base: embedded",
        "",
        *task,
        "",
        "data:",
        *data,
        "  max_length: 512",
        "  overflow: truncate_prompt",
        *shares,
        "",
        *_HOW_A_HEAD_TRAINS,
        *training,
        "",
    ]
    return "\n".join(lines)


def _names(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(name for record in records for name in record.fields))


def _lists(records: Sequence[Record], name: str) -> list[list[object]]:
    """A column's lists; none if a row has none."""
    found = [record.fields.get(name) for record in records]
    lists = [value for value in found if isinstance(value, list) and value]
    plain = all(isinstance(one, str | int) for row in lists for one in row)
    return lists if len(lists) == len(found) and plain else []
