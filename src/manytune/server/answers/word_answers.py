"""What a classifier of words says of a text: a label for each word, and the spans that the labels mark."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from manytune.data.labels.spans import OUTSIDE, spans_of
from manytune.server.http_errors import HttpError

_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class WordsOfText:
    """The words of a request's text.

    Attributes:
        words: The words.
        text: The text that they are from; None if they came as words.
        places: Where each begins and ends in the text.
    """

    words: tuple[str, ...]
    text: str | None = None
    places: tuple[tuple[int, int], ...] = ()


def words_in(text: str) -> WordsOfText:
    """The words of a text: runs of letters and digits, and every other sign that isn't white space.

    Raises:
        HttpError: It has none.
    """
    places = tuple(match.span() for match in _WORD.finditer(text))
    if not places:
        raise HttpError(400, "a text has no words.", code="invalid_value", param="input")
    return WordsOfText(tuple(text[start:end] for start, end in places), text, places)


def row_of_words(
    number: int, words: WordsOfText, names: Sequence[str], found: Sequence[Sequence[float]]
) -> dict[str, Any]:
    """A row of the answer.

    A word that has no token, or was cut off, has no label. A span's probability is the mean of its words'.

    Args:
        number: The row's.
        words: The words.
        names: The labels.
        found: The labels' probabilities for each word; empty for a word that wasn't read.
    """
    labels: list[str | None] = []
    listed = []
    for place, (word, values) in enumerate(zip(words.words, found, strict=True)):
        best = max(range(len(values)), key=values.__getitem__) if values else None
        labels.append(None if best is None else names[best])
        listed.append(
            {
                "word": word,
                **_place(words, place, place + 1),
                "label": labels[-1],
                "probability": None if best is None else values[best],
                "probabilities": dict(zip(names, values, strict=True)) if values else None,
            }
        )
    return {
        "object": "token_classification",
        "index": number,
        "words": listed,
        "entities": [
            {
                "label": kind,
                "text": _text(words, begin, end),
                "words": [begin, end],
                **_place(words, begin, end),
                "probability": fmean(max(values) for values in found[begin:end]),
            }
            for begin, end, kind in spans_of([label or OUTSIDE for label in labels])
        ],
    }


def _place(words: WordsOfText, begin: int, end: int) -> dict[str, int]:
    if words.text is None:
        return {}
    return {"start": words.places[begin][0], "end": words.places[end - 1][1]}


def _text(words: WordsOfText, begin: int, end: int) -> str:
    if words.text is None:
        return " ".join(words.words[begin:end])
    return words.text[words.places[begin][0] : words.places[end - 1][1]]
