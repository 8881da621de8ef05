"""Accuracy and F1 for classification by generation: the answer is read as one of the labels.

The labels are all references of the test set. An answer is read as the longest label that it is, or that it begins with
before something that isn't a letter or digit; after `normalise`, on both sides. An answer that begins with
none is wrong for every label. A classification head's choices are scored the same way: give them as answers
(`manytune.evaluation.answers.chosen`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from manytune.errors import DataError
from manytune.evaluation.metrics.accuracy import normalise
from manytune.evaluation.metrics.base import Described, Floats, MeanOfItems, number_of_references
from manytune.evaluation.results import Answer

MOST_LABELS = 200
"""With more different references than this, a test set isn't taken for a classification."""


@dataclass(frozen=True, slots=True)
class Accuracy(MeanOfItems):
    """Share of items whose answer is read as one of the item's labels."""

    name: str = "accuracy"
    label: str = "Accuracy"

    def scores(self, answers: Sequence[Answer], references: Sequence[Sequence[str]]) -> Sequence[float]:
        """1 or 0 an item.

        Raises:
            DataError: There are too many labels.
        """
        read = read_labels(answers, references)
        return [
            float(label is not None and label in map(normalise, texts))
            for label, texts in zip(read, references, strict=True)
        ]

    def signature(self, references: Sequence[Sequence[str]]) -> str:
        """For example `nrefs:1|labels:3|read:prefix|norm:nfkc+casefold+whitespace`."""
        return _signature(references)


@dataclass(frozen=True, slots=True)
class MacroF1(Described):
    """Mean over the labels of `F1 = 2·TP / (2·TP + FP + FN)`; labels that don't occur are left out of the mean."""

    name: str = "f1"
    label: str = "Macro F1"

    def statistics(self, answers: Sequence[Answer], references: Sequence[Sequence[str]]) -> Floats:
        """Rows `(TP, FP, FN)` for each label; with several labels to an item, a miss is of the first.

        Raises:
            DataError: There are too many labels.
        """
        labels = {label: place for place, label in enumerate(labels_of(references))}
        rows = np.zeros((len(answers), 3 * len(labels)))
        for row, said, texts in zip(rows, read_labels(answers, references), references, strict=True):
            wanted = [normalise(text) for text in texts]
            if said in wanted:
                row[3 * labels[said]] = 1
                continue
            if said is not None:
                row[3 * labels[said] + 1] = 1
            row[3 * labels[wanted[0]] + 2] = 1
        return rows

    def aggregate(self, sums: Floats) -> Floats:
        """Macro F1 of the summed counts."""
        right, wrong, missed = sums[..., 0::3], sums[..., 1::3], sums[..., 2::3]
        occurring = 2 * right + wrong + missed
        each = np.divide(2 * right, occurring, out=np.zeros_like(occurring), where=occurring > 0)
        result: Floats = each.sum(axis=-1) / np.maximum((occurring > 0).sum(axis=-1), 1)
        return result

    def signature(self, references: Sequence[Sequence[str]]) -> str:
        """For example `nrefs:1|labels:3|read:prefix|norm:nfkc+casefold+whitespace|mean:macro`."""
        return f"{_signature(references)}|mean:macro"


def labels_of(references: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Every label, normalised and sorted.

    Raises:
        DataError: There are so many that this is no classification.
    """
    labels = sorted({normalise(text) for texts in references for text in texts})
    if len(labels) > MOST_LABELS:
        raise DataError(
            f"accuracy and f1 take every reference for a label, and there are {len(labels):,} different ones (at most "
            f"{MOST_LABELS}); leave them out of the metrics, or use exact_match or contains"
        )
    return tuple(labels)


def read_labels(answers: Sequence[Answer], references: Sequence[Sequence[str]]) -> tuple[str | None, ...]:
    """The label that each answer is read as; `None` for no label.

    Raises:
        DataError: There are too many labels.
    """
    longest_first = sorted(labels_of(references), key=len, reverse=True)
    pattern = re.compile(rf"({'|'.join(map(re.escape, longest_first))})(?!\w)")
    found = (pattern.match(normalise(answer.text)) for answer in answers)
    return tuple(match[1] if match else None for match in found)


def _signature(references: Sequence[Sequence[str]]) -> str:
    return (
        f"nrefs:{number_of_references(references)}|labels:{len(labels_of(references))}|read:prefix|"
        "norm:nfkc+casefold+whitespace"
    )
