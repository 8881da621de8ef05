"""Answers that were made elsewhere: read from a file, and matched to the rows that they answer.

A file has a row an answer (.jsonl, .json, .csv, .parquet), its text in one of a few fields. Rows are matched by the
field `id` if answers and data both have it, else by the number `row` that `manytune evaluate --endpoint` records, else
by their order, of which then nothing may be missing. `prompt` is compared where an answer has it. With a field
`reference` or `references`, or as samples of lm-evaluation-harness, a file needs no data at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from manytune.data.readers import read, read_role, require_there
from manytune.data.records import Record
from manytune.data.templates import Example
from manytune.errors import DataError
from manytune.evaluation.harness_samples import is_sample, sample_of
from manytune.evaluation.results import Answer, Item

TEXT_FIELDS = ("answer", "text", "prediction", "response", "output", "generated_text")
"""Where an answer's text is looked for."""

_REFERENCES = ("reference", "references")
_CUT = "length"
_LARGEST = 2 * 2**30
_NAMED = 3  # how many of what is wrong a message names


@dataclass(frozen=True, slots=True)
class GivenAnswer:
    """One answer of a file.

    Attributes:
        answer: The answer.
        where: Its place, for messages.
        id: What matches it to a row; None for its place in the file.
        row: The number of the row that it answers, if the file says.
        prompt: What was asked, if the file says.
        references: The right answers, if the file says; else empty.
    """

    answer: Answer
    where: str
    id: str | None = None
    row: int | None = None
    prompt: str | None = None
    references: tuple[str, ...] = ()


def read_answers(
    path: Path, *, field: str | None = None, score: str | None = None
) -> tuple[GivenAnswer, ...]:
    """Read a file of answers, or samples of lm-evaluation-harness.

    Args:
        path: The file.
        field: Which field has the text; None for the one of `TEXT_FIELDS` that the rows have.
        score: Of samples, the name of the score to take; None for the first that they name.

    Raises:
        DataError: The file can't be read, or it isn't clear what is an answer in it.
    """
    require_there(str(path))
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"can't be read: {error.strerror}", where=str(path)) from error
    if size > _LARGEST:
        raise DataError(f"expected at most {_LARGEST:,} bytes of answers, found {size:,}", where=str(path))
    records = read(str(path)).kept
    if is_sample(records[0].fields):
        return _samples(records, field, score)
    field = field or _text_field(records[0])
    return tuple(_given(record, field) for record in records)


def match(
    given: Sequence[GivenAnswer], asked: Sequence[Sequence[Example]], *, partial: bool = False
) -> tuple[Answer, ...]:
    """Put answers into the order of what was asked.

    Args:
        given: The answers of one file.
        asked: The rows of each prompt; the answer to a prompt that several rows share is that to the first of them.
        partial: Whether there may be answers to other rows, too.

    Raises:
        DataError: An answer is missing, there are two to a row or one to none, or one was given to another prompt.
    """
    file = given[0].where.rpartition(":")[0]
    places = _places(given, asked, file, partial=partial)
    found = []
    for rows, place in zip(asked, places, strict=True):
        one = given[place]
        prompt = "\n\n".join(segment.text for segment in rows[0].segments).strip()
        if one.prompt is not None and prompt not in one.prompt:
            raise DataError(
                f"was given to another prompt than that of {rows[0].where}: expected {prompt[:80]!r} in it, found "
                f"{one.prompt[:80]!r}. Check that both files have the same rows, or match them by `id`.",
                where=one.where,
            )
        found.append(one.answer)
    return tuple(found)


def items_of(files: Sequence[Sequence[GivenAnswer]]) -> tuple[tuple[Item, ...], list[tuple[Answer, ...]]]:
    """What was asked by files that say so themselves, and each file's answers in its order.

    Raises:
        DataError: An answer has no reference, or the files don't answer the same.
    """
    first = files[0]
    lacking = next((one for one in first if not one.references), None)
    if lacking is not None:
        raise DataError(
            "has no `reference` to compare it with; name the asked rows with --data, or give every answer one",
            where=lacking.where,
        )
    keys = [one.id or str(place) for place, one in enumerate(first, start=1)]
    source = first[0].where.rpartition(":")[0]
    items = tuple(
        Item(one.prompt or "", one.references, source, one.row or place, group=None)
        for place, one in enumerate(first, start=1)
    )
    answers = []
    for given in files:
        by_key = _by_key(given, [one.id or str(place) for place, one in enumerate(given, start=1)])
        _check_keys(keys, by_key, given[0].where.rpartition(":")[0], partial=False)
        for key, one in zip(keys, first, strict=True):
            if by_key[key].references and by_key[key].references != one.references:
                raise DataError(
                    f"has another reference than {one.where}: expected {one.references}, found "
                    f"{by_key[key].references}",
                    where=by_key[key].where,
                )
        answers.append(tuple(by_key[key].answer for key in keys))
    return items, answers


def _places(
    given: Sequence[GivenAnswer], asked: Sequence[Sequence[Example]], file: str, *, partial: bool
) -> list[int]:
    """For each prompt the place of its answer."""
    kind: Literal["id", "row"]
    wanted: list[list[str]]
    if all(one.id is not None for one in given) and (ids := _ids(asked)) is not None:
        kind, wanted = "id", ids
    elif (
        all(one.row is not None for one in given) and len({row.source for rows in asked for row in rows}) == 1
    ):
        kind, wanted = "row", [[str(row.row) for row in rows] for rows in asked]
    else:
        return _by_order(len(given), asked, file)
    keys = [str(one.id if kind == "id" else one.row) for one in given]
    by_key = {key: place for place, key in enumerate(keys)}
    _by_key(given, keys)
    firsts = [next((key for key in keys if key in by_key), keys[0]) for keys in wanted]
    known = {key for keys in wanted for key in keys}
    named = {key: given[place] for key, place in by_key.items() if key in firsts or key not in known}
    _check_keys(firsts, named, file, partial=partial, kind=kind)
    return [by_key[key] for key in firsts]


def _by_order(answers: int, asked: Sequence[Sequence[Example]], file: str) -> list[int]:
    rows = sum(map(len, asked))
    if answers == len(asked):
        return list(range(answers))
    if answers == rows:
        sources = list(dict.fromkeys(row.source for rows in asked for row in rows))
        order = sorted(
            (sources.index(row.source), row.row, place) for place, rows in enumerate(asked) for row in rows
        )
        first: dict[int, int] = {}
        for number, (_, _, place) in enumerate(order):
            first.setdefault(place, number)
        return [first[place] for place in range(len(asked))]
    expected = f"{len(asked):,} answers, one for each prompt" + (
        f", or {rows:,}, one for each row" if rows > len(asked) else ""
    )
    raise DataError(
        f"expected {expected}; found {answers:,}. To match some of them, give answers and rows an `id`.",
        where=file,
    )


def _ids(asked: Sequence[Sequence[Example]]) -> list[list[str]] | None:
    """The `id` of every row of every prompt; None if a row has none."""
    fields: dict[tuple[str, int], Mapping[str, object]] = {}
    for source in dict.fromkeys(row.source for rows in asked for row in rows):
        fields |= {
            (record.source, record.row): record.fields
            for record in read_role(source, "test", on_error="skip").kept
        }
    ids = [[fields.get((row.source, row.row), {}).get("id") for row in rows] for rows in asked]
    if any(one is None for of_rows in ids for one in of_rows):
        return None
    return [[str(one) for one in of_rows] for of_rows in ids]


def _by_key(given: Sequence[GivenAnswer], keys: Sequence[str]) -> dict[str, GivenAnswer]:
    found: dict[str, GivenAnswer] = {}
    for key, one in zip(keys, given, strict=True):
        if key in found:
            raise DataError(f"answers {key!r} again, as {found[key].where} does", where=one.where)
        found[key] = one
    return found


def _check_keys(
    wanted: Sequence[str], found: Mapping[str, GivenAnswer], file: str, *, partial: bool, kind: str = "id"
) -> None:
    missing = [key for key in wanted if key not in found]
    if missing:
        raise DataError(
            f"has no answer to {len(missing):,} of {len(wanted):,} rows, by `{kind}`: {_listed(missing)}",
            where=file,
        )
    extra = [key for key in found if key not in set(wanted)]
    if extra and not partial:
        raise DataError(
            f"has {len(extra):,} answers to rows that weren't asked, by `{kind}`: {_listed(extra)}",
            where=file,
        )


def _listed(keys: Sequence[str]) -> str:
    more = ", ..." if len(keys) > _NAMED else ""
    return ", ".join(keys[:_NAMED]) + more


def _text_field(record: Record) -> str:
    there = [name for name in TEXT_FIELDS if name in record.fields]
    if len(there) == 1:
        return there[0]
    found = f"several ({', '.join(there)})" if there else f"none of {', '.join(TEXT_FIELDS)}"
    raise DataError(
        f"expected one field with the answer's text, found {found}; name it with --answer-field",
        where=record.where,
    )


def _given(record: Record, field: str) -> GivenAnswer:
    fields = record.fields
    text = fields.get(field)
    if not isinstance(text, str):
        raise DataError(f"expected text in the field {field!r}, found {text!r}", where=record.where)
    tokens, score, row = fields.get("tokens"), fields.get("score"), fields.get("row")
    if score is not None and (not isinstance(score, int | float) or not 0 <= score <= 1):
        raise DataError(f"expected a score from 0 to 1, found {score!r}", where=record.where)
    ended = fields.get("finished", fields.get("finish_reason"))
    answer = Answer(
        text,
        tokens if isinstance(tokens, int) else 0,
        "length" if ended == _CUT else "stop",
        score=None if score is None else float(score),
    )
    key, prompt = fields.get("id"), fields.get("prompt")
    return GivenAnswer(
        answer,
        record.where,
        None if key is None else str(key),
        row if isinstance(row, int) else None,
        prompt if isinstance(prompt, str) else None,
        () if field in _REFERENCES else _references(record),
    )


def _references(record: Record) -> tuple[str, ...]:
    found = [record.fields[name] for name in _REFERENCES if record.fields.get(name) is not None]
    texts = [text for one in found for text in (one if isinstance(one, list | tuple) else [one])]
    if not all(isinstance(text, str) for text in texts):
        raise DataError("expected texts as references", where=record.where)
    return tuple(str(text) for text in texts)


def _samples(records: Sequence[Record], field: str | None, score: str | None) -> tuple[GivenAnswer, ...]:
    filters = list(dict.fromkeys(str(record.fields.get("filter", "none")) for record in records))
    chosen = field or filters[0]
    if (len(filters) > 1 and field is None) or chosen not in filters:
        raise DataError(
            f"the samples went through several filters; choose one with --answer-field: {', '.join(filters)}",
            where=records[0].source,
        )
    found = []
    for record in records:
        if str(record.fields.get("filter", "none")) == chosen:
            one = sample_of(record, score)
            found.append(GivenAnswer(one.answer, record.where, one.id, one.row, one.prompt, one.references))
    return tuple(found)
