"""A first recipe for a data file, with the reason for each key next to it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from manytune.data.conversation.checks import oddities
from manytune.data.conversation.detect import detect
from manytune.data.conversation.form import DESCRIPTIONS, ConversationForm, FormName
from manytune.data.readers import read
from manytune.data.records import Record
from manytune.data.rendering import field_reference, shorten
from manytune.data.strict_json import parse
from manytune.data.templates import NAMED_TEMPLATES, Example
from manytune.errors import DataError
from manytune.training.starting_classifier import labelled_columns, labelled_recipe, numeric_columns
from manytune.training.starting_tags import tagged_columns, tagged_recipe

_ENOUGH = 30  # rows, of which a tenth is worth setting aside
_SHARE = 0.1
_QUESTION_NAMES = (
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
_ANSWER_NAMES = ("completion", "answer", "output", "response", "summary", "target", "label", "highlights")


def starting_recipe(file: str, *, output: Path) -> str:
    """Return a recipe that trains on a file and sets rows aside to evaluate on, as YAML with comments.

    Args:
        file: A data file, or a name that `datasets` can load.
        output: Where the recipe goes; its name becomes the run's.

    Raises:
        DataError: The file can't be read, or its columns are neither two texts, one asked and one answered, nor a text
            and a label.
    """
    records = read(file, on_error="skip").kept
    if not records:
        raise DataError("no row can be read", where=file)
    labelled = None if detect(records) is not None else labelled_columns(records)
    tagged = None if detect(records) is not None else tagged_columns(records)
    if tagged is not None:
        return tagged_recipe(file, records, *tagged, output=output, shares=_share_lines(len(records)))
    numeric = None if detect(records) is not None or labelled is not None else numeric_columns(records)
    if found := labelled or numeric:
        shares = _share_lines(len(records))
        return labelled_recipe(
            file, records, *found, output=output, shares=shares, numbers=numeric is not None
        )
    return "\n".join(
        [
            f"# manytune train {output}",
            f"# then: manytune evaluate runs/{output.stem}",
            "",
            "# A hub id, a directory or a .gguf file; embedded is SmolLM2-135M-Instruct, which needs no download.",
            "base: embedded",
            "",
            "data:",
            f"  train: {json.dumps(file, ensure_ascii=False)}",
            *_form_lines(records, file),
            *_share_lines(len(records)),
            "",
            "method:",
            "  # Others: docs/methods.md. A higher r has more parameters; alpha / r scales what it adds.",
            "  name: lora",
            "  r: 16",
            "  lora_alpha: 32",
            "",
            "training:",
            "  epochs: 3",
            "  # Rows of a forward pass; with accumulation: 4 an optimizer step takes four of them.",
            "  batch_size: 8",
            "  learning_rate: 2e-4",
            "  # Needs less memory, on GPUs that have it: dtype: bfloat16",
            "",
        ]
    )


def _form_lines(records: Sequence[Record], file: str) -> list[str]:
    found = detect(records)
    if found in get_args(FormName):
        return _conversation_lines(records, found)
    if found is not None and found in NAMED_TEMPLATES:
        template = NAMED_TEMPLATES[found]
        return [
            f"  # {template.prompt!r} asks for {template.completion!r}.",
            f"  template: {found}",
            *_length_lines("truncate_prompt", "a longer prompt is cut at its end, and counted"),
        ]
    asked, answered = _two_texts(records, file)
    return [
        "  # A guess from the columns: write what is asked before or after it, and exchange the two if need be.",
        f"  prompt: {json.dumps(field_reference(asked))}",
        f"  completion: {json.dumps(field_reference(answered))}",
        *_length_lines("truncate_prompt", "a longer prompt is cut at its end, and counted"),
    ]


def _conversation_lines(records: Sequence[Record], name: object) -> list[str]:
    form = ConversationForm(name)  # type: ignore[arg-type]  # one of the names
    lines = [f"  # {DESCRIPTIONS[form.name]}; {len(records):,} rows.", f"  format: {form.name}"]
    if form.name == "text":
        lines += [
            "  # Documents are packed up to max_length tokens; a longer one is divided.",
            "  max_length: 1024",
        ]
        return lines
    usable, odd, reasons = [], 0, []
    for record in records:
        try:
            usable.append(form.render(record))
        except DataError as error:
            reasons.append(str(error))
            continue
        odd += bool(oddities(form.conversation(record)))
    if not usable:
        raise DataError(f"no row can be used; the first: {reasons[0]}")
    if reasons:
        lines += [
            f"  # {len(reasons):,} rows can't be used, such as {shorten(reasons[0], 100)}",
            "  on_error: skip",
        ]
    if odd:
        lines.append(f"  # {odd:,} conversations are odd: manytune data check says why.")
    lines += ["  # Every answer is learned; `last` learns each conversation's last one.", "  learn: all"]
    lines += _scoring_lines(usable)
    return lines + _length_lines(
        "drop_oldest_turns", "a longer conversation loses its oldest turns, and is counted"
    )


def _scoring_lines(examples: Sequence[Example]) -> list[str]:
    """How to score answers that are no text for people."""
    if any(turn.tool_calls for example in examples for turn in example.turns()):
        return ["  # Tools are called: manytune evaluate RUN --turns each --metrics tool_calls,tool_names"]
    if all(_is_object(example.completion) for example in examples):
        return ["  # The answers are JSON: manytune evaluate RUN --metrics json_fields,json_valid"]
    return []


def _is_object(text: str) -> bool:
    try:
        return isinstance(parse(text), dict)
    except ValueError:
        return False


def _length_lines(overflow: str, why: str) -> list[str]:
    return [f"  # In tokens; {why}.", "  max_length: 2048", f"  overflow: {overflow}"]


def _share_lines(rows: int) -> list[str]:
    if rows < 3:
        return ["  # Too few rows to set any aside.", "  validation: null"]
    share = _SHARE if rows >= _ENOUGH else max(_SHARE, round(1.2 / rows, 2))
    return [
        "  # Shares that are set aside: to watch the loss while training, and for `manytune evaluate`.",
        f"  validation: {share:g}",
        f"  test: {share:g}",
    ]


def _two_texts(records: Sequence[Record], file: str) -> tuple[str, str]:
    """The columns that are probably asked and answered: by their names, else the longest texts."""
    lengths: dict[str, list[int]] = {}
    for record in records:
        for name, value in record.fields.items():
            if isinstance(value, str) and value.strip():
                lengths.setdefault(name, []).append(len(value))
    texts = sorted(lengths, key=lambda name: -sum(lengths[name]))
    if len(texts) < 2:
        raise DataError(
            f"the rows have {len(texts)} columns with text ({', '.join(texts) or 'none'}); a recipe needs one that is "
            "asked and one that is answered, or one of the forms of conversations",
            where=file,
        )
    answered = _named(texts, _ANSWER_NAMES) or texts[1]
    rest = [name for name in texts if name != answered]
    return _named(rest, _QUESTION_NAMES) or rest[0], answered


def _named(columns: Sequence[str], names: Sequence[str]) -> str | None:
    by_name = {column.lower(): column for column in columns}
    return next((by_name[name] for name in names if name in by_name), None)
