"""Exact match and containment: the share of answers that equal a reference, or have one in them; 0 to 1."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from manytune.evaluation.metrics.base import MeanOfItems, number_of_references
from manytune.evaluation.results import Answer


@dataclass(frozen=True, slots=True)
class ExactMatch(MeanOfItems):
    """Share of items whose answer equals one of the references after `normalise`, on both sides."""

    name: str = "exact_match"
    label: str = "Exact match"

    def scores(self, answers: Sequence[Answer], references: Sequence[Sequence[str]]) -> Sequence[float]:
        """1 or 0 an item."""
        return [
            float(normalise(answer.text) in {normalise(text) for text in texts})
            for answer, texts in zip(answers, references, strict=True)
        ]

    def signature(self, references: Sequence[Sequence[str]]) -> str:
        """For example `nrefs:1|norm:nfkc+casefold+whitespace|mrefs:any`."""
        return f"nrefs:{number_of_references(references)}|norm:nfkc+casefold+whitespace|mrefs:any"


@dataclass(frozen=True, slots=True)
class Contains(MeanOfItems):
    """Share of items whose answer has one of the references in it as whole words, after `normalise`.

    For short facts (`Paris`) in answers of free form (`The capital is Paris.`).
    """

    name: str = "contains"
    label: str = "Answer found"

    def scores(self, answers: Sequence[Answer], references: Sequence[Sequence[str]]) -> Sequence[float]:
        """1 or 0 an item."""
        found = []
        for answer, texts in zip(answers, references, strict=True):
            said = normalise(answer.text)
            wanted = (rf"(?<!\w){re.escape(normalise(text))}(?!\w)" for text in texts)
            found.append(float(any(re.search(pattern, said) for pattern in wanted)))
        return found

    def signature(self, references: Sequence[Sequence[str]]) -> str:
        """For example `nrefs:1|match:whole words|norm:nfkc+casefold+whitespace|mrefs:any`."""
        nrefs = number_of_references(references)
        return f"nrefs:{nrefs}|match:whole words|norm:nfkc+casefold+whitespace|mrefs:any"


def normalise(text: str) -> str:
    """Unicode NFKC, case folded, white space cut at the ends and single elsewhere; punctuation stays."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
