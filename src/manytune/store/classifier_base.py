"""A base with a new head, on which classifiers are trained and asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from manytune.errors import DataError
from manytune.model.classifier import classifies_words, is_classifier, with_head
from manytune.store.base import Base


def classifier_base(base: Base, names: Sequence[str], *, of_words: bool = False) -> Base:
    """The base with transformers' classifier around its layers, which aren't copied; name and fingerprint stay.

    Args:
        base: With nothing attached; one that is a classifier for these classes already is given back as it is.
        names: The classes; a single name for a regression's number.
        of_words: Whether each token gets a class, rather than the whole text.

    Raises:
        DataError: It is a classifier for other labels.
        ConfigError: transformers has no classifier of this kind, or the base is an encoder-decoder.
    """
    if is_classifier(base.model):
        config: Any = base.model.config
        present = [config.id2label[place] for place in range(config.num_labels)]
        if present != list(names) or classifies_words(base.model) is not of_words:
            raise DataError(
                f"the base has a head for {'words' if classifies_words(base.model) else 'texts'} with the labels "
                f"{present}, and the rows are {'words' if of_words else 'texts'} with {list(names)}"
            )
        return base
    pad_id = None if base.images is not None else base.tokenizer.pad_token_id
    return dataclasses.replace(
        base,
        model=with_head(
            base.model, names, pad_id=pad_id if isinstance(pad_id, int) else None, of_words=of_words
        ),
    )


def text_positions(base: Base) -> int | None:
    """The most tokens of a text that the base reads; None without a limit.

    RoBERTa and its relatives count positions from after the pad token's id, so they have fewer than their
    configuration says.
    """
    positions = base.positions
    offset = getattr(getattr(base.model.base_model, "embeddings", None), "padding_idx", None)
    return positions if positions is None or not isinstance(offset, int) else positions - offset - 1
