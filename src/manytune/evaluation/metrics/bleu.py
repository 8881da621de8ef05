"""BLEU (Papineni et al. 2002) and chrF (Popović 2015) of a whole test set, as in `sacrebleu`: 0 to 100.

Both are functions of counts summed over the corpus, not averages of sentence scores. The rows hold those
counts. With several references BLEU clips n-grams by the largest count in any of them and takes the closest
length; chrF takes the best reference of each item.

sacrebleu is imported when a score or a signature is computed: recipes name metrics, and their mistakes don't wait.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from manytune.evaluation.metrics.base import Described, Floats
from manytune.evaluation.results import Answer

_WORD_ORDER = 4
_CHARACTER_ORDER = 6
_BETA_SQUARED = 4.0  # chrF2 weighs recall twice as much as precision


@dataclass(frozen=True, slots=True)
class Bleu(Described):
    """Corpus BLEU with sacrebleu's defaults: mixed case, `13a` tokenizer, exponential smoothing.

    `BLEU = 100 · min(1, e^(1 - r/c)) · (p1·p2·p3·p4)^(1/4)` with `c` and `r` the lengths of answers and
    references and `pn` the share of the answers' n-grams that a reference has. An order without a match
    counts as half, a quarter, ... of one match.
    """

    name: str = "bleu"
    label: str = "BLEU"
    bounds: tuple[float, float] = (0.0, 100.0)
    digits: int = 1

    def statistics(self, answers: Sequence[Answer], references: Sequence[Sequence[str]]) -> Floats:
        """Rows `(c, r, matches of orders 1 to 4, n-grams of orders 1 to 4)`."""
        rows = np.zeros((len(answers), 2 + 2 * _WORD_ORDER))
        for row, answer, texts in zip(rows, answers, references, strict=True):
            counts = _sentence_bleu().sentence_score(answer.text, list(texts))
            row[:] = [counts.sys_len, counts.ref_len, *counts.counts, *counts.totals]
        return rows

    def aggregate(self, sums: Floats) -> Floats:
        """BLEU of the summed counts; 0 where nothing matches or an order has no n-grams at all."""
        answer_length, reference_length = sums[..., 0], sums[..., 1]
        matches, ngrams = sums[..., 2 : 2 + _WORD_ORDER], sums[..., 2 + _WORD_ORDER :]
        missed = matches == 0
        smoothed = np.where(missed, 0.5 ** np.cumsum(missed, axis=-1), matches)
        defined = (ngrams > 0).all(axis=-1) & ~missed.all(axis=-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            precision = np.exp(np.log(smoothed / ngrams).mean(axis=-1))
            brevity = np.exp(np.minimum(0.0, 1.0 - reference_length / answer_length))
            result: Floats = np.where(defined, 100.0 * brevity * precision, 0.0)
        return result

    def signature(self, references: Sequence[Sequence[str]]) -> str:
        """Sacrebleu's own."""
        from sacrebleu.metrics.bleu import BLEU

        return _sacrebleu_signature(BLEU(), references)


@dataclass(frozen=True, slots=True)
class Chrf(Described):
    """Corpus chrF2 with sacrebleu's defaults: character n-grams to order 6, no white space, mixed case.

    `chrF = 100 · (1 + 2²) · P · R / (2² · P + R)` with `P` and `R` the mean precision and recall over the
    orders that both sides have.
    """

    name: str = "chrf"
    label: str = "chrF"
    bounds: tuple[float, float] = (0.0, 100.0)
    digits: int = 1

    def statistics(self, answers: Sequence[Answer], references: Sequence[Sequence[str]]) -> Floats:
        """Rows `(answer's n-grams, reference's n-grams, matches)` for each order, of the best reference."""
        rows = np.zeros((len(answers), 3 * _CHARACTER_ORDER))
        for row, answer, texts in zip(rows, answers, references, strict=True):
            said = _character_ngrams(answer.text)
            candidates = np.array([_match(said, _character_ngrams(text)) for text in texts])
            row[:] = candidates[np.argmax(self.aggregate(candidates))]
        return rows

    def aggregate(self, sums: Floats) -> Floats:
        """ChrF of the summed counts; 0 where nothing matches."""
        said, wanted, matches = sums[..., 0::3], sums[..., 1::3], sums[..., 2::3]
        both = (said > 0) & (wanted > 0)
        orders = np.maximum(both.sum(axis=-1), 1)
        precision = np.where(both, matches / np.maximum(said, 1), 0).sum(axis=-1) / orders
        recall = np.where(both, matches / np.maximum(wanted, 1), 0).sum(axis=-1) / orders
        denominator = _BETA_SQUARED * precision + recall
        result: Floats = np.where(
            denominator > 0,
            100.0 * (1.0 + _BETA_SQUARED) * precision * recall / np.where(denominator > 0, denominator, 1.0),
            0.0,
        )
        return result

    def signature(self, references: Sequence[Sequence[str]]) -> str:
        """Sacrebleu's own."""
        from sacrebleu.metrics.chrf import CHRF

        return _sacrebleu_signature(CHRF(), references)


@cache
def _sentence_bleu() -> Any:
    from sacrebleu.metrics.bleu import (
        BLEU,
    )  # here, as recipes name metrics, and their mistakes don't wait for it

    # effective_order only silences sacrebleu's advice for sentence scores; the counts are the same.
    return BLEU(effective_order=True)


def _character_ngrams(text: str) -> list[Counter[str]]:
    """For each order 1 to 6, how often each n-gram occurs in the text without its white space."""
    letters = "".join(text.split())
    return [
        Counter(letters[start : start + order] for start in range(len(letters) - order + 1))
        for order in range(1, _CHARACTER_ORDER + 1)
    ]


def _match(said: list[Counter[str]], wanted: list[Counter[str]]) -> list[int]:
    """`(answer's n-grams, reference's n-grams, matches)` for each order, flat."""
    row = []
    for ours, theirs in zip(said, wanted, strict=True):
        # sacrebleu leaves an answer's n-grams out where the reference is too short to have any.
        row += [ours.total() if theirs else 0, theirs.total(), (ours & theirs).total()]
    return row


def _sacrebleu_signature(metric: Any, references: Sequence[Sequence[str]]) -> str:
    """Sacrebleu's signature for this many references; it reads their number off a corpus that it scores."""
    counts = sorted({len(texts) for texts in references})
    items = [["x"] * count + [None] * (counts[-1] - count) for count in counts]
    metric.corpus_score(["x"] * len(items), [list(stream) for stream in zip(*items, strict=True)])
    return str(metric.get_signature())
