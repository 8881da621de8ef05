"""From a classifier's rows to the token ids of each split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from manytune.data.dataset import Splits, TokenSplits
from manytune.data.encoding.special_tokens import spelled_in
from manytune.data.labels.image_encoder import ImageEncoder
from manytune.data.labels.label_encoder import LabelEncoder, RowEncoder
from manytune.data.labels.label_kinds import AnyLabels, check_others, labels_for
from manytune.data.labels.labelled import Labels
from manytune.data.labels.numeric_labels import Scale
from manytune.data.labels.word_encoder import encoder_for
from manytune.data.recipe import DataRecipe
from manytune.errors import DataError
from manytune.images import ImageReading

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_labelled(
    splits: Splits,
    data: DataRecipe,
    tokenizer: PreTrainedTokenizerBase,
    *,
    positions: int | None = None,
    class_weights: Literal["balanced"] | Mapping[str, float] | None = None,
    images: ImageReading | None = None,
    scale: Scale | bool = True,
) -> tuple[TokenSplits, AnyLabels]:
    """Turn a classifier's training and validation examples into token ids, or images, and labels.

    Args:
        splits: The rows.
        data: The recipe's data section.
        tokenizer: The base's.
        positions: The most tokens that the base reads; None for no limit.
        class_weights: As in a recipe's training section.
        images: How a base of images reads them; None for one that reads text.
        scale: What a regression's head learns; see `numeric_labels_of`.

    Raises:
        DataError: The labels are no classes or no numbers, a row of another split has one of its own, a row is too
            long or its image can't be read and the recipe says that this is an error, or no row is left to train on.
    """
    labels = labels_for(data.labelled_form(), splits.train, scale=scale)
    check_others(labels, splits.validation, splits.test)
    weights = labels.weights(class_weights) if isinstance(labels, Labels) else None
    encoder = row_encoder(data, tokenizer, labels, positions=positions, images=images, weights=weights)
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
        max_prompt=_longest_text(data, encoder),
        spelled=None
        if data.special_tokens_in_text
        else spelled_in(splits.train, encoder.spelled_special_token),
    ), labels


def row_encoder(
    data: DataRecipe,
    tokenizer: PreTrainedTokenizerBase,
    labels: AnyLabels,
    *,
    positions: int | None = None,
    images: ImageReading | None = None,
    weights: Mapping[str, float] | None = None,
) -> RowEncoder:
    """What encodes a classifier's rows.

    Args:
        data: The recipe's data section.
        tokenizer: The base's.
        labels: The classes.
        positions: The most tokens that the base reads; None for no limit.
        images: How a base of images reads them; None for one that reads text.
        weights: What rows of each label weigh in the loss; 1 if not given.

    Raises:
        DataError: `data.overflow` is for conversations.
    """
    if images is not None:
        return ImageEncoder(images, labels, weights=weights)
    limits = [limit for limit in (data.max_length, positions) if limit is not None]
    return encoder_for(
        tokenizer,
        labels,
        max_length=min(limits, default=None),
        overflow=data.overflow,
        weights=weights,
        special_tokens_in_text=data.special_tokens_in_text,
    )


def _longest_text(data: DataRecipe, encoder: RowEncoder) -> int | None:
    """The tokens that longer texts are cut to; None if they aren't cut."""
    if isinstance(encoder, LabelEncoder) and data.overflow == "truncate_prompt":
        return encoder.longest
    return None
