"""Batches for encoder-decoders: the prompt is the encoder's input, the completion the decoder's target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from manytune.errors import RunError
from manytune.training.batches.batch import (
    Batch,
    LaidOut,
    TokenSequence,
    base_model,
    check_sequences,
    learned,
)
from manytune.training.batches.labelled import LabelledBatch
from manytune.training.batches.target_loss import weighted_nll


class Builder(Protocol):
    """Lays sequences out as one batch."""

    def __call__(self, sequences: Sequence[TokenSequence], *, pad_id: int) -> AnyBatch:
        """Build a batch; `pad_id` is any valid token id."""


@dataclass(frozen=True, slots=True)
class Seq2SeqBatch(LaidOut):
    """Sequences laid out for one forward pass of an encoder-decoder, one a row, padded on the right.

    Attributes:
        input_ids: The prompts. Shape `(rows, longest prompt)`.
        attention_mask: 1 for tokens and 0 for pad tokens. Shape `(rows, longest prompt)`.
        decoder_input_ids: The start token and the completions without their last tokens. Shape
            `(rows, longest completion)`.
        target_rows: For each target, the row of its logits in `logits.flatten(0, 1)`. Shape `(n,)`.
        labels: For each target, its token id. Shape `(n,)`.
        weights: Ones. Shape `(n,)`, float32.
        tokens_in: Tokens that the encoder and the decoder read, pad tokens not counted.
    """

    input_ids: Tensor
    attention_mask: Tensor
    decoder_input_ids: Tensor
    target_rows: Tensor
    labels: Tensor
    weights: Tensor
    tokens_in: int

    def model_inputs(self, model: nn.Module | None = None) -> dict[str, Any]:
        """Keyword arguments for the forward of a transformers encoder-decoder."""
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "decoder_input_ids": self.decoder_input_ids,
            "use_cache": False,
        }

    def loss_sum(self, logits: Tensor) -> Tensor:
        """Sum of the targets' negative log likelihoods, in nats.

        Args:
            logits: Shape `(rows, longest completion, vocabulary)`; a soft prompt's virtual tokens may come
                first in the second dimension.
        """
        return weighted_nll(self.kept(logits).flatten(0, 1), self.target_rows, self.labels, self.weights)

    def kept(self, outputs: Tensor) -> Tensor:
        """The columns that `target_rows` counts in: those after a soft prompt's virtual tokens."""
        return outputs[:, -self.decoder_input_ids.shape[1] :]


AnyBatch = Batch | Seq2SeqBatch | LabelledBatch
"""A causal language model's, an encoder-decoder's or a classifier's."""


def builder_for(model: nn.Module) -> Builder:
    """The builder of batches for an encoder-decoder, with its decoder's start token.

    Raises:
        RunError: Its configuration names no start token.
    """
    start_id = base_model(model).config.decoder_start_token_id
    if start_id is None:
        raise RunError(
            "the encoder-decoder's configuration has no decoder_start_token_id, so its decoder has nothing to "
            "start with. Set it in the base's config.json."
        )
    return partial(build, start_id=start_id)


def build(sequences: Sequence[TokenSequence], *, pad_id: int, start_id: int) -> Seq2SeqBatch:
    """Lay sequences out for an encoder-decoder.

    Args:
        sequences: Tokenised examples; at least one, none with an empty prompt or completion.
        pad_id: Any valid token id; it fills places that nothing attends to and nothing is learned from.
        start_id: The decoder's first input.

    Raises:
        DataError: If there is no sequence, or a prompt or a completion is empty.
    """
    check_sequences(sequences)
    input_ids, is_input = _right_padded([sequence.prompt_ids for sequence in sequences], pad_id)
    decoder_input_ids, is_target = _right_padded(
        [(start_id, *sequence.completion_ids[:-1]) for sequence in sequences], pad_id
    )
    labels = torch.tensor([token for sequence in sequences for token in sequence.completion_ids])
    bear_loss = torch.tensor([mark for sequence in sequences for mark in learned(sequence)])
    return Seq2SeqBatch(
        input_ids=input_ids,
        attention_mask=is_input.long(),
        decoder_input_ids=decoder_input_ids,
        target_rows=is_target.flatten().nonzero().squeeze(1)[bear_loss],
        labels=labels[bear_loss],
        weights=torch.ones(int(bear_loss.sum())),
        tokens_in=int(is_input.sum() + is_target.sum()),
    )


def _right_padded(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Token ids and where they are tokens, both `(rows, longest)`."""
    lengths = torch.tensor([len(row) for row in rows])
    is_token = torch.arange(int(lengths.max())) < lengths[:, None]
    ids = torch.full(is_token.shape, pad_id)
    ids[is_token] = torch.tensor([token for row in rows for token in row])
    return ids, is_token
