"""Samples that lm-evaluation-harness writes with `--log_samples`: `samples_TASK_DATE.jsonl`, a row an answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from manytune.data.records import Record
from manytune.errors import DataError
from manytune.evaluation.results import Answer


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample.

    Attributes:
        answer: What was generated, or the number of the choice with the highest likelihood; and the harness's score.
        id: Of its document.
        row: The document's number, from 1.
        prompt: What was asked.
        references: The target.
    """

    answer: Answer
    id: str
    row: int
    prompt: str
    references: tuple[str, ...]


def is_sample(fields: Mapping[str, object]) -> bool:
    """Whether a row is one of the harness's."""
    return "doc_id" in fields and "resps" in fields


def sample_of(record: Record, score: str | None) -> Sample:
    """Read one sample.

    Args:
        record: The row.
        score: The name of the score to take, such as `acc_norm`; None for the first that the row names.

    Raises:
        DataError: It isn't one, or it has no such score.
    """
    fields = record.fields
    number = fields["doc_id"]
    if not isinstance(number, int):
        raise DataError(f"expected a whole number as doc_id, found {number!r}", where=record.where)
    target = fields.get("target")
    targets = target if isinstance(target, list) and target else [target]
    return Sample(
        Answer(_answer(record), 0, "stop", score=_score(record, score)),
        f"{number}/{fields.get('doc_hash', '')}",  # the same number of another document is another one
        number + 1,
        _prompt(fields),
        tuple(str(one) for one in targets),
    )


def _answer(record: Record) -> str:
    """The text that is left by the filter; of a choice between continuations, the likeliest one's number."""
    found: Any = record.fields.get("filtered_resps", record.fields["resps"])
    if not isinstance(found, list) or not found:
        raise DataError(f"expected a list of responses, found {found!r}", where=record.where)
    likelihoods = [_likelihood(one) for one in found]
    if all(one is not None for one in likelihoods):
        return str(max(range(len(found)), key=lambda place: likelihoods[place] or 0.0))
    first = found[0]
    while isinstance(first, list) and first:
        first = first[0]
    return first if isinstance(first, str) else json.dumps(first, ensure_ascii=False)


def _likelihood(response: Any) -> float | None:
    """A log likelihood; a response is a pair of one and of whether it is the greedy one, perhaps in a list."""
    while isinstance(response, list) and len(response) == 1:
        response = response[0]
    if not isinstance(response, list) or len(response) != 2 or str(response[1]) not in ("True", "False"):
        return None
    try:
        return float(response[0])
    except (TypeError, ValueError):
        return None


def _score(record: Record, name: str | None) -> float | None:
    fields = record.fields
    named = fields.get("metrics")
    names = [str(one) for one in named] if isinstance(named, list) else []
    chosen = name or next((one for one in names if isinstance(fields.get(one), int | float)), None)
    if chosen is None:
        return None
    found = fields.get(chosen)
    if not isinstance(found, int | float) or not 0 <= found <= 1:
        raise DataError(
            f"expected a score from 0 to 1 under {chosen!r}, found {found!r}; the row's scores are {', '.join(names)}",
            where=record.where,
        )
    return float(found)


def _prompt(fields: Mapping[str, object]) -> str:
    """The first argument of the first request: the prompt."""
    found: Any = fields.get("arguments")
    while isinstance(found, list | dict) and found:
        found = found[0] if isinstance(found, list) else next(iter(found.values()))
    return found if isinstance(found, str) else ""
