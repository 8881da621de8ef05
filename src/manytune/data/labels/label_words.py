"""Label words: a model that generates classifies by which label's word it finds likeliest as the answer to a prompt."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from manytune.data.encoding.encode import Encoder
from manytune.data.encoding.encoded import Encoded
from manytune.data.labels.labelled import MOST_LABELS
from manytune.data.templates import Example
from manytune.errors import DataError

CONTENT_FREE = "N/A"
"""What takes the place of a prompt's text where it is to say nothing (Zhao et al., ICML 2021)."""


@dataclass(frozen=True)
class LabelWords:
    """The labels, and the word of each in an answer.

    Attributes:
        words: The word of each label; it may be several words.

    Raises:
        DataError: There are fewer than two labels or too many, one is empty, or two have the same word.
    """

    words: Mapping[str, str]

    def __post_init__(self) -> None:
        values = list(self.words.values())
        if not 2 <= len(values) <= MOST_LABELS:
            raise DataError(f"expected label words of 2 to {MOST_LABELS} labels; found {len(values)}")
        if not all(part.strip() for pair in self.words.items() for part in pair):
            raise DataError(f"a label or its word is empty: {dict(self.words)}")
        if len(set(values)) < len(values):
            raise DataError(f"two labels have the same word: {dict(self.words)}")

    @property
    def names(self) -> tuple[str, ...]:
        """The labels."""
        return tuple(self.words)

    def label_of(self, example: Example) -> str:
        """The label of a row, whose completion is a label or a label's word.

        Raises:
            DataError: It is neither.
        """
        text = example.completion.strip()
        by_word = {word.strip(): name for name, word in self.words.items()}
        found = text if text in self.words else by_word.get(text)
        if found is None:
            raise DataError(
                f"the completion {text[:60]!r} is neither a label nor a label's word: {_listed(self.words)}",
                where=example.where,
            )
        return found

    def sequences(self, example: Example, encoder: Encoder) -> tuple[Encoded, ...]:
        """The prompt of an example with each label's word as its completion, in the order of the labels.

        A completion has the word's tokens alone, without what ends an answer.

        Raises:
            DataError: It is too long, a word has no tokens, or one's tokens begin another's.
        """
        found = []
        for word in self.words.values():
            plain = replace(example, completion=word, references=(), tool_calls=(), reasoning=None)
            row = encoder.encode(plain)
            ids = row.completion_ids
            end = ids.index(encoder.end_id) if encoder.end_id in ids else len(ids)
            if not end:
                raise DataError(f"the label word {word!r} has no tokens", where=example.where)
            found.append(replace(row, completion_ids=ids[:end], given=()))
        ordered = sorted(zip((row.completion_ids for row in found), self.words.values(), strict=True))
        for (ids, word), (longer_ids, longer) in pairwise(ordered):
            if longer_ids[: len(ids)] == ids:
                raise DataError(
                    f"the tokens of the label word {word!r} begin those of {longer!r}, which could never be the "
                    "likelier one. Choose others"
                )
        return tuple(found)


def label_words(text: str) -> LabelWords:
    """Read `positive=great,negative=terrible`, or `yes,no` for labels that are their own words.

    Raises:
        DataError: It isn't that.
    """
    words: dict[str, str] = {}
    for part in text.split(","):
        name, sign, word = (piece.strip() for piece in part.partition("="))
        if name in words:
            raise DataError(f"the label {name!r} is given twice in {text!r}")
        words[name] = word if sign else name
    return LabelWords(words)


def label_probabilities(nlls: Sequence[float], content_free: Sequence[float] | None = None) -> list[float]:
    """The labels' probabilities: `p(word | prompt)` of each, made to add up to 1.

    Args:
        nlls: Each word's negative log likelihood after the prompt, in nats.
        content_free: The same after the prompt without its text. Then each is divided by that probability first, which
            takes out what the model prefers whatever it is asked (contextual calibration, Zhao et al., ICML 2021).

    Returns:
        One a label; NaN where the likelihoods are.
    """
    before = content_free or [0.0] * len(nlls)
    scores = [other - nll for nll, other in zip(nlls, before, strict=True)]
    highest = max(scores)
    raw = [math.exp(score - highest) for score in scores]
    total = sum(raw)
    return [value / total for value in raw]


def _listed(words: Mapping[str, str]) -> str:
    return ", ".join(name if name == word else f"{name} ({word})" for name, word in words.items())
