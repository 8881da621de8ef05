"""Batches for classifiers: a text a row, padded on the right to the longest, or an image; and one label each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from manytune.data.labels.image_encoder import LabelledImage
from manytune.data.labels.label_encoder import Labelled
from manytune.data.labels.word_encoder import Tagged
from manytune.errors import DataError
from manytune.training.batches.batch import LaidOut, base_model
from manytune.training.batches.support import virtual_tokens

IGNORED = -100
"""Where a token has no label, as in transformers."""


@dataclass(frozen=True, slots=True)
class LabelledBatch(LaidOut):
    """Texts or images laid out for one forward pass of a classifier.

    Attributes:
        input_ids: Shape `(rows, longest)`; of images, as many as the model makes vectors of each.
        attention_mask: 1 for tokens and 0 for pad tokens. Shape `(rows, longest)`.
        token_type_ids: From which of two texts each token is; None where no row has two. Shape `(rows, longest)`.
        labels: The place of each row's label; or, as floating point numbers, what a regression's head is to give.
            Shape `(rows,)`. Of words: the place of the tag of each word's first token, and `IGNORED` elsewhere. Shape
            `(rows, longest)`.
        weights: What each label weighs in the loss. The labels' shape, float32.
        tokens_in: Tokens, pad tokens not counted.
        pixel_values: Of images, shape `(rows, channels, height, width)`; None for texts.
    """

    input_ids: Tensor
    attention_mask: Tensor
    token_type_ids: Tensor | None
    labels: Tensor
    weights: Tensor
    tokens_in: int
    pixel_values: Tensor | None = None

    @property
    def targets(self) -> float:
        """Number of labels: one a row, or one a word."""
        return float((self.labels != IGNORED).sum() if self.labels.dim() > 1 else self.labels.numel())

    def model_inputs(self, model: nn.Module | None = None) -> dict[str, Any]:
        """Keyword arguments for the forward of a transformers classifier.

        Args:
            model: The classifier; its pad token fills the places after a text, by which decoders find the text's end.
        """
        if self.pixel_values is not None:
            return {"pixel_values": self.pixel_values}
        ids, pad_id = self.input_ids, None if model is None else base_model(model).config.pad_token_id
        if pad_id is not None:
            ids = ids.masked_fill(self.attention_mask == 0, pad_id)
        inputs = {"input_ids": ids, "attention_mask": self.attention_mask}
        return inputs if self.token_type_ids is None else {**inputs, "token_type_ids": self.token_type_ids}

    def logits(self, model: Any) -> Tensor:
        """The model's logits, `(rows, labels)`; of words `(rows, longest, labels)`.

        With virtual tokens that are read before the text, transformers' decoders take the last column for a text's
        end, whatever fills it; so rows of each length go through the model on their own.
        """
        if self.labels.dim() > 1:
            of_words: Tensor = model(**self.model_inputs(model)).logits
            return of_words[:, -self.input_ids.shape[1] :]  # without virtual tokens
        if virtual_tokens(model) is None:
            logits: Tensor = model(**self.model_inputs(model)).logits
            return logits
        lengths = self.attention_mask.sum(1)
        found: list[Tensor | None] = [None] * len(lengths)
        for length in lengths.unique().tolist():
            places = (lengths == length).nonzero().squeeze(1)
            inputs = {name: value[places, :length] for name, value in self.model_inputs(model).items()}
            for place, row in zip(places.tolist(), model(**inputs).logits, strict=True):
                found[place] = row
        return torch.stack([row for row in found if row is not None])

    def loss_sum(self, logits: Tensor) -> Tensor:
        """Sum over labels of the weighted negative log likelihood, in nats; or of the squared error.

        Args:
            logits: As `logits` gives them.
        """
        if self.labels.dim() > 1:
            there = self.labels != IGNORED
            of_words = torch.nn.functional.cross_entropy(
                logits[there].float(), self.labels[there], reduction="none"
            )
            return (of_words * self.weights[there]).sum()
        if self.labels.is_floating_point():
            errors = logits.float().squeeze(-1) - self.labels
            return (errors.square() * self.weights).sum()
        each = torch.nn.functional.cross_entropy(logits.float(), self.labels, reduction="none")
        return (each * self.weights).sum()


def build(sequences: Sequence[Any], *, pad_id: int) -> LabelledBatch:
    """Lay a classifier's rows out.

    Args:
        sequences: Encoded texts or images with their labels; at least one, none empty.
        pad_id: Any valid token id; it fills places that nothing attends to.

    Raises:
        DataError: There is no row, one has no tokens, or an image can't be read any more.
    """
    rows: list[Labelled] = list(sequences)
    empty = next((row for row in rows if not row.prompt_ids), None)
    if empty is not None or not rows:
        where = None if empty is None else f"{empty.source}:{empty.row}"
        raise DataError("a text needs at least one token; the tokenizer made none of it", where=where)
    width = max(len(row.prompt_ids) for row in rows)
    mask = torch.arange(width) < torch.tensor([len(row.prompt_ids) for row in rows])[:, None]
    ids = torch.full(mask.shape, pad_id)
    ids[mask] = torch.tensor([token for row in rows for token in row.prompt_ids])
    kinds: Tensor | None = None
    if any(row.token_type_ids for row in rows):
        kinds = torch.zeros_like(ids)
        for place, row in enumerate(rows):
            kinds[place, : len(row.token_type_ids)] = torch.tensor(row.token_type_ids)
    labels: Tensor = torch.tensor([row.label if row.value is None else row.value for row in rows])
    weights = torch.tensor([row.weight for row in rows])
    if any(isinstance(row, Tagged) for row in rows):
        labels, weights = torch.full(mask.shape, IGNORED), torch.zeros(mask.shape)
        for place, row in enumerate(rows):
            assert isinstance(row, Tagged)  # rows of one recipe are of one kind
            tokens = torch.tensor(row.first_tokens)
            labels[place, tokens] = torch.tensor(row.completion_ids)
            weights[place, tokens] = torch.tensor(row.weights)
    return LabelledBatch(
        input_ids=ids,
        attention_mask=mask.long(),
        token_type_ids=kinds,
        labels=labels,
        weights=weights,
        tokens_in=int(mask.sum()),
        pixel_values=_pixel_values(rows),
    )


def _pixel_values(rows: Sequence[Labelled]) -> Tensor | None:
    images = [row.pixels() for row in rows if isinstance(row, LabelledImage)]
    return torch.from_numpy(np.stack(images)) if images else None
