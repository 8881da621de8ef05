"""The kinds of labels that rows have: classes, or numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from manytune.data.labelled import LabelledForm, Labels, check_labels, labels_of
from manytune.data.numeric_labels import NumericLabels, Scale, numeric_labels_of
from manytune.data.templates import Example

AnyLabels = Labels | NumericLabels
"""What a head learns, and how its outputs are read."""


def labels_for(form: LabelledForm, examples: Sequence[Example], *, scale: Scale | bool = True) -> AnyLabels:
    """The labels of training rows.

    Args:
        form: How rows became examples.
        examples: At least one.
        scale: Of numbers; see `numeric_labels_of`.

    Raises:
        DataError: They can't be learned.
    """
    return numeric_labels_of(examples, scale) if form.is_numeric else labels_of(examples)


def labels_from(content: Mapping[str, Any]) -> AnyLabels:
    """The labels that a manifest holds.

    Raises:
        DataError: They can't be read.
    """
    kind = NumericLabels if content.get("task") == "regression" else Labels
    return kind.from_dict(content)


def check_others(labels: AnyLabels, *others: Sequence[Example]) -> None:
    """See that rows which aren't trained on can be compared with what the head gives.

    Raises:
        DataError: One has a label that no training row has, or no number; names its file and line.
    """
    if isinstance(labels, Labels):
        check_labels(labels, *others)
        return
    for examples in others:
        for example in examples:
            labels.target(example)
