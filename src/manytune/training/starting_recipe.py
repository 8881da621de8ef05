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
from manytune.data.records import Record, Rejected
from manytune.data.rendering import field_reference, shorten
from manytune.data.strict_json import parse
from manytune.data.templates import NAMED_TEMPLATES, Example, PromptTemplate, render_all
from manytune.data.text import TEXT_FILES, require_utf8
from manytune.errors import DataError
from manytune.training.starting_classifier import labelled_columns, labelled_recipe, numeric_columns
from manytune.training.starting_columns import are_named, are_rated, asked_and_answered, listed
from manytune.training.starting_tags import tagged_columns, tagged_recipe

_ENOUGH = 30  # rows, of which a tenth is worth setting aside
_SHARE = 0.1


def starting_recipe(file: str, *, output: Path) -> str:
    """Return a recipe that trains on a file and sets rows aside to evaluate on, as YAML with comments.

    Args:
        file: A data file, or a name that `datasets` can load.
        output: Where the recipe goes; its name becomes the run's.

    Raises:
        DataError: The file can't be read, or its columns are neither two texts, one asked and one answered, nor a text
            and a label.
    """
    if Path(file).suffix.lower() in TEXT_FILES and Path(file).is_file():
        require_utf8(Path(file), file)  # a row left out for an accent in it would be missed by nobody
    found = read(file, on_error="skip")
    records, unread = found.kept, [f"{row.where}: {row.reason}" for row in found.rejected]
    if not records:
        raise DataError(
            f"no row can be read; the first: {found.rejected[0].reason}", where=found.rejected[0].where
        )
    form = None if are_rated(records) else detect(records)
    aside = [*_share_lines(len(records)), *_left_out_lines(unread)]
    tagged = None if form is not None else tagged_columns(records)
    if tagged is not None:
        return tagged_recipe(file, records, *tagged, output=output, shares=aside)
    is_known = form is not None or are_named(records)
    labelled = None if is_known else labelled_columns(records)
    numeric = None if is_known or labelled is not None else numeric_columns(records)
    if columns := labelled or numeric:
        return labelled_recipe(
            file, records, *columns, output=output, shares=aside, numbers=numeric is not None
        )
    form_lines, unusable = _form_lines(records, file)
    return "\n".join(
        [
            f"# manytune train {output}",
            f"# then: manytune evaluate runs/{output.stem}",
            "",
            "# A hub id, a directory or a .gguf file; embedded is SmolLM2-135M-Instruct, which needs no hub.",
            "base: embedded",
            "",
            "data:",
            f"  train: {json.dumps(file, ensure_ascii=False)}",
            *form_lines,
            *_share_lines(len(records)),
            *_left_out_lines([*unread, *unusable]),
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


def _form_lines(records: Sequence[Record], file: str) -> tuple[list[str], list[str]]:
    """The lines that say how a row is read, and why rows can't be."""
    found = detect(records)
    if found in get_args(FormName):
        return _conversation_lines(records, found)
    if found is not None and found in NAMED_TEMPLATES:
        template = NAMED_TEMPLATES[found]
        lines = [
            f"  # {template.prompt!r} asks for {template.completion!r}.",
            f"  template: {found}",
        ]
    else:
        asked, answered = asked_and_answered(records, file)
        template = PromptTemplate(field_reference(asked), field_reference(answered))
        lines = [
            f"  # A guess from the columns {listed(dict.fromkeys(name for one in records for name in one.fields))}:",
            "  # write what is asked before or after it, and exchange the two if need be.",
            f"  prompt: {json.dumps(template.prompt, ensure_ascii=False)}",
            f"  completion: {json.dumps(template.completion, ensure_ascii=False)}",
        ]
    rendered = render_all(template, records, on_error="skip")
    _require_some(rendered.kept, rendered.rejected)
    lines += _length_lines("truncate_prompt", "a longer prompt is cut at its end, and counted")
    return lines, [f"{row.where}: {row.reason}" for row in rendered.rejected]


def _conversation_lines(records: Sequence[Record], name: object) -> tuple[list[str], list[str]]:
    form = ConversationForm(name)  # type: ignore[arg-type]  # one of the names
    lines = [f"  # {DESCRIPTIONS[form.name]}; {len(records):,} rows.", f"  format: {form.name}"]
    if form.name == "text":
        lines += [
            "  # Documents are packed up to max_length tokens; a longer one is divided.",
            "  max_length: 1024",
        ]
        return lines, []
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
    if odd:
        lines.append(f"  # {odd:,} conversations are odd: manytune data check says why.")
    lines += ["  # Every answer is learned; `last` learns each conversation's last one.", "  learn: all"]
    lines += _scoring_lines(usable)
    lines += _length_lines(
        "drop_oldest_turns", "a longer conversation loses its oldest turns, and is counted"
    )
    return lines, reasons


def _require_some(kept: Sequence[Example], rejected: Sequence[Rejected]) -> None:
    if not kept:
        raise DataError(f"no row can be used; the first: {rejected[0].reason}", where=rejected[0].where)


def _left_out_lines(reasons: Sequence[str]) -> list[str]:
    if not reasons:
        return []
    return [
        f"  # {len(reasons):,} rows can't be used, such as {shorten(reasons[0], 100)}",
        "  on_error: skip",
    ]


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
