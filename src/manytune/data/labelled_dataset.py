"""From a classifier's rows to the token ids of each split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from manytune.data.dataset import Splits, TokenSplits
from manytune.data.label_kinds import AnyLabels, check_others, labels_for
from manytune.data.labelled import Labels
from manytune.data.numeric_labels import Scale
from manytune.data.recipe import DataRecipe
from manytune.data.special_tokens import spelled_in
from manytune.data.word_encoder import encoder_for
from manytune.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_labelled(
    splits: Splits,
    data: DataRecipe,
    tokenizer: PreTrainedTokenizerBase,
    *,
    positions: int | None = None,
    class_weights: Literal["balanced"] | Mapping[str, float] | None = None,
    scale: Scale | bool = True,
) -> tuple[TokenSplits, AnyLabels]:
    """Turn a classifier's training and validation examples into token ids and labels.

    Args:
        splits: The rows.
        data: The recipe's data section.
        tokenizer: The base's.
        positions: The most tokens that the base reads; None for no limit.
        class_weights: As in a recipe's training section.
        scale: What a regression's head learns; see `numeric_labels_of`.

    Raises:
        DataError: The labels are no classes or no numbers, a row of another split has one of its own, a row is too
            long and the recipe says that this is an error, or no row is left to train on.
    """
    labels = labels_for(data.labelled_form(), splits.train, scale=scale)
    check_others(labels, splits.validation, splits.test)
    limits = [limit for limit in (data.max_length, positions) if limit is not None]
    encoder = encoder_for(
        tokenizer,
        labels,
        max_length=min(limits, default=None),
        overflow=data.overflow,
        weights=labels.weights(class_weights) if isinstance(labels, Labels) else None,
        special_tokens_in_text=data.special_tokens_in_text,
    )
    train = encoder.encode_all(splits.train, on_error=data.on_error)
    if not train.kept:
        raise DataError(f"none of the training rows can be used; the first: {train.dropped[0].reason}")
    validation = encoder.encode_all(splits.validation, on_error=data.on_error)
    return TokenSplits(
        train.kept,
        validation.kept,
        (*splits.left_out, *train.dropped, *validation.dropped),
        train.truncated + validation.truncated,
        "plain",
        max_prompt=encoder.longest if data.overflow == "truncate_prompt" else None,
        spelled=None
        if data.special_tokens_in_text
        else spelled_in(splits.train, encoder.spelled_special_token),
    ), labels
