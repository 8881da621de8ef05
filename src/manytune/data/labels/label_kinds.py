"""The kinds of labels that rows have: classes, numbers, or tags of words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from manytune.data.labels.labelled import LabelledForm, Labels, check_labels, labels_of
from manytune.data.labels.numeric_labels import NumericLabels, Scale, numeric_labels_of
from manytune.data.labels.word_labels import TASK, TaggedForm, WordLabels, word_labels_of
from manytune.data.templates import Example

AnyLabels = Labels | NumericLabels
"""What a head learns, and how its outputs are read; `WordLabels`, tags of words, are `Labels`, too."""
AnyLabelledForm = LabelledForm | TaggedForm
"""How a row with a label becomes an example."""


def labels_for(
    form: AnyLabelledForm, examples: Sequence[Example], *, scale: Scale | bool = True
) -> AnyLabels:
    """The labels of training rows.

    Args:
        form: How rows became examples.
        examples: At least one.
        scale: Of numbers; see `numeric_labels_of`.

    Raises:
        DataError: They can't be learned.
    """
    if isinstance(form, TaggedForm):
        return word_labels_of(examples)
    return numeric_labels_of(examples, scale) if form.is_numeric else labels_of(examples)


def labels_from(content: Mapping[str, Any]) -> AnyLabels:
    """The labels that a manifest holds.

    Raises:
        DataError: They can't be read.
    """
    task = content.get("task")
    if task == "regression":
        return NumericLabels.from_dict(content)
    return (WordLabels if task == TASK else Labels).from_dict(content)


def check_others(labels: AnyLabels, *others: Sequence[Example]) -> None:
    """See that rows which aren't trained on can be compared with what the head gives.

    Raises:
        DataError: One has a label that no training row has, or no number; names its file and line.
    """
    if isinstance(labels, Labels) and not isinstance(labels, WordLabels):
        check_labels(labels, *others)
        return
    for examples in others:
        for example in examples:
            if isinstance(labels, WordLabels):
                labels.places(example)
            elif isinstance(labels, NumericLabels):
                labels.target(example)
