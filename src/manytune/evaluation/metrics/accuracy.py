"""Exact match: the share of answers that equal a reference, between 0 and 1."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from manytune.evaluation.metrics.base import Floats, mean, number_of_references, with_count
from manytune.evaluation.results import Answer


@dataclass(frozen=True, slots=True)
class ExactMatch:
    """Share of items whose answer equals one of the references after `normalise`, on both sides."""

    name: str = "exact_match"
    label: str = "Exact match"
    bounds: tuple[float, float] = (0.0, 1.0)
    higher_is_better: bool = True
    digits: int = 3

    def statistics(self, answers: Sequence[Answer], references: Sequence[Sequence[str]]) -> Floats:
        """Rows `(1 or 0, 1)`."""
        scores = [
            float(normalise(answer.text) in {normalise(text) for text in texts})
            for answer, texts in zip(answers, references, strict=True)
        ]
        return with_count(scores)

    def aggregate(self, sums: Floats) -> Floats:
        """Share of matches."""
        return mean(sums)

    def signature(self, references: Sequence[Sequence[str]]) -> str:
        """For example `nrefs:1|norm:nfkc+casefold+whitespace|mrefs:any`."""
        return f"nrefs:{number_of_references(references)}|norm:nfkc+casefold+whitespace|mrefs:any"


def normalise(text: str) -> str:
    """Unicode NFKC, case folded, white space cut at the ends and single elsewhere; punctuation stays."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
