"""Tags of words: exact spans as CoNLL's shared tasks count them (Tjong Kim Sang and De Meulder 2003), and accuracy.

An item's answer and reference are the tags of its words with spaces between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from manytune.data.labels.spans import spans_of
from manytune.evaluation.metrics.base import Described, Floats, number_of_references
from manytune.evaluation.results import Answer


@dataclass(frozen=True, slots=True)
class SpanScore(Described):
    """Precision, recall or F1 of spans: one is right if its first word, its last word and its type are.

    `F1 = 2·TP / (2·TP + FP + FN)`, of all spans together (micro), or the mean over the types that occur (macro); types
    that no reference has count as one. 0 where there is nothing to divide by.

    Attributes:
        of: What it is.
    """

    of: Literal["f1", "macro", "precision", "recall"] = "f1"

    def statistics(self, answers: Sequence[Answer], references: Sequence[Sequence[str]]) -> Floats:
        """Rows `(TP, FP, FN)` for each type, that of unknown types last; of several references the first counts."""
        right = [spans_of(texts[0].split()) for texts in references]
        types = sorted({kind for spans in right for _, _, kind in spans})
        places = {kind: 3 * place for place, kind in enumerate(types)}
        rows = np.zeros((len(answers), 3 * len(types) + 3))
        for row, answer, expected in zip(rows, answers, right, strict=True):
            said, wanted = set(spans_of(answer.text.split())), set(expected)
            for shift, spans in ((0, said & wanted), (1, said - wanted), (2, wanted - said)):
                for _, _, kind in spans:
                    row[places.get(kind, 3 * len(types)) + shift] += 1
        return rows

    def aggregate(self, sums: Floats) -> Floats:
        """The score of the summed counts."""
        counts = sums.reshape(*sums.shape[:-1], -1, 3)
        if self.of != "macro":
            counts = counts.sum(axis=-2, keepdims=True)
        right, wrong, missed = np.moveaxis(counts, -1, 0)
        whole = {"precision": right + wrong, "recall": right + missed}.get(
            self.of, (2 * right + wrong + missed) / 2
        )
        each = np.divide(right, whole, out=np.zeros_like(whole), where=whole > 0)
        occurring = (right + wrong + missed > 0).sum(axis=-1)
        result: Floats = each.sum(axis=-1) / np.maximum(occurring, 1)
        return result

    def signature(self, references: Sequence[Sequence[str]]) -> str:
        """For example `nrefs:1|spans:exact|types:4|mean:micro`."""
        types = {kind for texts in references for _, _, kind in spans_of(texts[0].split())}
        mean = "macro" if self.of == "macro" else "micro"
        return f"nrefs:{number_of_references(references)}|spans:exact|types:{len(types)}|mean:{mean}"


@dataclass(frozen=True, slots=True)
class TagAccuracy(Described):
    """Share of all words whose tag is right."""

    name: str = "tag_accuracy"
    label: str = "Tag accuracy"

    def statistics(self, answers: Sequence[Answer], references: Sequence[Sequence[str]]) -> Floats:
        """Rows `(right, words)`; a word without an answer is wrong."""
        rows = []
        for answer, texts in zip(answers, references, strict=True):
            said, wanted = answer.text.split(), texts[0].split()
            rows.append((sum(a == b for a, b in zip(said, wanted, strict=False)), len(wanted)))
        return np.array(rows, dtype=np.float64).reshape(-1, 2)

    def aggregate(self, sums: Floats) -> Floats:
        """The share."""
        result: Floats = sums[..., 0] / sums[..., 1]
        return result

    def signature(self, references: Sequence[Sequence[str]]) -> str:
        """`nrefs:1|mean:words`."""
        return f"nrefs:{number_of_references(references)}|mean:words"
