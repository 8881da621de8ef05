"""What `manytune evaluate` does with classifiers: their common labels, their questions, their answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from manytune.errors import DataError

if TYPE_CHECKING:
    from manytune.cli.chosen import Chosen
    from manytune.data.labels.label_kinds import AnyLabels
    from manytune.data.templates import Example
    from manytune.evaluation.answers import Question
    from manytune.evaluation.evaluate import System
    from manytune.evaluation.results import Answer
    from manytune.store.base import Base


def common_labels(chosen: Sequence[Chosen]) -> AnyLabels | None:
    """The labels of all adapters; None if they generate. Of numbers those of the first, whose mean is the baseline.

    Raises:
        DataError: They have different ones, or only some are classifiers.
    """
    first = chosen[0].labels
    for one in chosen[1:]:
        if type(one.labels) is not type(first) or (one.labels and one.labels.names) != (
            first and first.names
        ):
            raise DataError(
                f"{chosen[0].name} and {one.name} don't have the same labels, so they can't be compared. Evaluate them "
                "one at a time."
            )
    return first


def labelled_questions_of(
    chosen: Sequence[Chosen], base: Base, labels: AnyLabels, examples: Sequence[Example]
) -> tuple[Base, tuple[Question, ...]]:
    """The base with a head, and a question of every row, cut as the training cut texts.

    Raises:
        DataError: The adapters were trained with different limits, or a row can't be used.
    """
    from manytune.data.labels.word_labels import WordLabels
    from manytune.evaluation.answers import labelled_questions
    from manytune.experiments.classifying import label_encoder_of
    from manytune.store.classifier_base import classifier_base

    limits = {(one.data.max_length, one.data.overflow, one.data.special_tokens_in_text) for one in chosen}
    if len(limits) > 1:
        raise DataError(
            "the adapters were trained with different data.max_length, data.overflow or "
            "data.special_tokens_in_text, so they would be asked different things. Evaluate them one at a time."
        )
    encoder = label_encoder_of(base, labels, chosen[0].data)
    with_head = classifier_base(base, labels.names, of_words=isinstance(labels, WordLabels))
    return with_head, labelled_questions(examples, encoder)


def baseline_system(questions: Sequence[Question], labels: AnyLabels) -> System:
    """The baseline."""
    from manytune.evaluation.evaluate import System
    from manytune.experiments.classifying import baseline_answers, baseline_name

    return System(baseline_name(labels), "base", baseline_answers(questions, labels))


def ask_classifiers(
    chosen: Sequence[Chosen], base: Base, questions: Sequence[Question], *, batch_size: int
) -> list[tuple[Answer, ...]]:
    """Every adapter's answers, over one copy of the base."""
    from rich.console import Console

    from manytune.cli.outputs.progress import CommandProgress
    from manytune.experiments.classifying import ask_classifier
    from manytune.store.attaching import attached

    found = []
    with CommandProgress(Console(stderr=True)) as progress:
        for one in chosen:
            labels = one.labels
            assert labels is not None  # all have some of one kind

            def notice(what: str, done: int, total: int, name: str = one.name) -> None:
                progress.answering(f"{name}: {what}", done, total)

            with attached(base, one.stored.path, activations=one.activations) as model:
                found.append(ask_classifier(model, questions, labels, batch_size=batch_size, notice=notice))
    return found
