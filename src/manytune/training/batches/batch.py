"""One batch, laid out for one forward pass: what the model reads and what the loss needs."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from manytune.errors import DataError
from manytune.training.batches.layout import Layout
from manytune.training.batches.target_loss import weighted_nll


class TokenSequence(Protocol):
    """A tokenised example, as `manytune.data.encoding.encoded.Encoded` is one."""

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """Tokens that are given."""

    @property
    def completion_ids(self) -> tuple[int, ...]:
        """Tokens that are learned, the end token included; those in `given` aren't."""

    @property
    def given(self) -> tuple[tuple[int, int], ...]:
        """Ranges of `completion_ids` that bear no loss, in order: what is between two answers of a conversation."""

    @property
    def source(self) -> str:
        """Where the example comes from; for error messages."""

    @property
    def row(self) -> int:
        """The example's record number in its source, from 1; for error messages."""


class LaidOut:
    """What is common to batches of all kinds, which are dataclasses."""

    __slots__ = ()
    labels: Tensor

    @property
    def targets(self) -> float:
        """Number of targets, which divides the loss's sum."""
        return float(self.labels.numel())

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """The same batch on another device."""
        batch: Any = self
        moved = {
            field.name: value.to(device, non_blocking=non_blocking)
            for field in dataclasses.fields(batch)
            if isinstance(value := getattr(self, field.name), (Tensor, Layout))
        }
        return dataclasses.replace(batch, **moved)  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Batch(LaidOut):
    """Sequences laid out for one forward pass of a causal language model.

    A *target* is a completion token that bears the loss. Its logits are those of the token before it.

    Attributes:
        input_ids: Token ids. Shape `(rows, columns)`; one row unless the layout is padded.
        position_ids: Each token's position in its own sequence, from 0. Shape `(rows, columns)`.
        logit_positions: Columns whose logits are needed, ascending and without repetition. Shape `(kept,)`.
        target_rows: For each target, the row of its logits in `logits.flatten(0, 1)`. Shape `(n,)`.
        labels: For each target, its token id. Shape `(n,)`.
        weights: For each target, how many sequences of the batch it belongs to. Shape `(n,)`, float32.
        attention_mask: 1 for tokens and 0 for pad tokens. Shape `(rows, columns)`; None without pad tokens.
        layout: What attention needs to keep the sequences of a packed row apart; None for padded batches.
        tokens_in: Input tokens of all sequences. A sequence's last token is a label and never an input.
        tokens_padded: What a padded batch of these sequences computes: their number times the longest.
        tokens_computed: What this batch computes: rows times columns.
        pad_tokens: How many of those are pad tokens.
    """

    input_ids: Tensor
    position_ids: Tensor
    logit_positions: Tensor
    target_rows: Tensor
    labels: Tensor
    weights: Tensor
    attention_mask: Tensor | None
    layout: Layout | None
    tokens_in: int
    tokens_padded: int
    tokens_computed: int
    pad_tokens: int

    @property
    def targets(self) -> float:
        """Number of targets, each counted once for every sequence it belongs to."""
        return float(self.weights.sum())

    def model_inputs(self, model: nn.Module | None = None) -> dict[str, Any]:
        """Keyword arguments for the forward of a transformers causal language model.

        A batch with a layout needs the model to be inside `packed_attention(model)`.

        Args:
            model: The model that will get them. If its forward takes no `logits_to_keep`, that argument is
                left out and the model returns all logits, which `loss_sum` accepts as well.
        """
        inputs: dict[str, Any] = {
            "input_ids": self.input_ids,
            "position_ids": self.position_ids,
            "use_cache": False,
        }
        if self.attention_mask is not None:
            inputs["attention_mask"] = self.attention_mask
        if self.layout is not None:
            inputs["manytune_layout"] = self.layout
        if model is None or keeps_logits(model):
            inputs["logits_to_keep"] = self.logit_positions
        return inputs

    def loss_sum(self, logits: Tensor) -> Tensor:
        """Weighted sum of the targets' negative log likelihoods, in nats.

        Args:
            logits: Shape `(rows, kept, vocabulary)`; with `columns` for `kept` if the model keeps all.

        Returns:
            A scalar: float64 for float64 logits and float32 otherwise. Divide by `targets` for the mean.
        """
        return weighted_nll(self.kept(logits).flatten(0, 1), self.target_rows, self.labels, self.weights)

    def kept(self, outputs: Tensor) -> Tensor:
        """The columns that `target_rows` counts in.

        Args:
            outputs: The model's, shape `(rows, kept or columns, width)`; a soft prompt's virtual tokens may come first.
        """
        if outputs.shape[1] == self.logit_positions.numel():
            return outputs
        virtual = outputs.shape[1] - self.input_ids.shape[1]
        return outputs[:, self.logit_positions + virtual]


def learned(sequence: TokenSequence) -> list[bool]:
    """Whether each completion token bears the loss."""
    mask = [True] * len(sequence.completion_ids)
    for start, end in sequence.given:
        mask[start:end] = [False] * (end - start)
    return mask


def check_sequences(sequences: Sequence[TokenSequence]) -> None:
    """Refuse what no layout can hold.

    Raises:
        DataError: If there is no sequence, or one has an empty prompt (nothing predicts its first completion
            token) or a completion without a token to learn.
    """
    if not sequences:
        raise DataError("a batch needs at least one sequence, got none")
    for sequence in sequences:
        for part, ids, why in (
            ("prompt", sequence.prompt_ids, "nothing predicts the first token of the completion"),
            ("completion", any(learned(sequence)), "there is nothing to learn from it"),
        ):
            if not ids:
                raise DataError(
                    f"the {part} has no tokens, so {why}; drop the row or change the template",
                    where=f"{sequence.source}:{sequence.row}",
                )


def base_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside wrappers such as an adapter's or `DistributedDataParallel`.

    Raises:
        TypeError: If there is none.
    """
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            return module
    raise TypeError(
        f"expected a transformers PreTrainedModel or a wrapper of one, got {type(model).__name__}"
    )


def keeps_logits(model: nn.Module) -> bool:
    """Whether the model's forward takes `logits_to_keep` and so runs its head on chosen columns only."""
    return _takes_logits_to_keep(type(base_model(model)).forward)


@functools.cache
def _takes_logits_to_keep(forward: Callable[..., Any]) -> bool:
    return "logits_to_keep" in inspect.signature(forward).parameters
