"""Scores of a model's answers to validation prompts while it trains: the engine's answers, evaluation's metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from manytune.errors import DataError
from manytune.evaluation.answers import questions_from
from manytune.evaluation.metrics import metrics_named
from manytune.experiments.answering import Decoding, ask_model
from manytune.experiments.score_names import check_scores
from manytune.training.inputs import RunInputs
from manytune.training.loop.validation import ValidationScores

T = TypeVar("T")


def validation_scores(inputs: RunInputs) -> ValidationScores:
    """What measures the scores that a recipe's `training.validation` names.

    The prompts are encoded as in training, and taken from the validation rows alone.

    Args:
        inputs: What the run starts from.

    Raises:
        RecipeError: A score isn't known.
        DataError: There are no validation rows, or they are running text, to which there are no answers.
    """
    check_scores(inputs.recipe)
    base, recipe, wanted = inputs.base, inputs.recipe, inputs.recipe.training.validation
    assert wanted is not None, "nothing is to be scored"
    options = recipe.data.encoding_options(max_prompt=inputs.data.max_prompt)
    chat = recipe.data.chat
    encoder = options.within(base.positions, wanted.max_new_tokens).encoder(
        base.tokenizer, chat=None if chat == "auto" else chat, encoder_decoder=base.is_encoder_decoder
    )
    sample = spread(questions_from(inputs.splits.validation, encoder), wanted.rows)
    if any(question.is_document for question in sample) and set(wanted.scores) != {"perplexity"}:
        raise DataError(
            "training.validation.scores are of answers, and the validation rows are running text, to which there are "
            "none; only perplexity can be measured"
        )
    metrics = metrics_named(wanted.scores)
    decoding = Decoding(
        max_new_tokens=wanted.max_new_tokens, batch_size=wanted.batch_size, end_ids=(encoder.end_id,)
    )

    def measure(model: Any) -> Mapping[str, float]:
        answers = ask_model(
            model, base.tokenizer, sample, decoding, likelihoods="perplexity" in wanted.scores
        )
        references = [question.item.references for question in sample]
        return {
            metric.name: float(metric.aggregate(metric.statistics(answers, references).sum(axis=0)))
            for metric in metrics
        }

    return ValidationScores(measure, {metric.name: metric.higher_is_better for metric in metrics})


def spread(items: Sequence[T], most: int) -> Sequence[T]:
    """At most so many items, at equal distances, so that every part of the rows has its share."""
    count = min(most, len(items))
    return [items[place * len(items) // count] for place in range(count)]
