"""Likelihoods of given completions, in padded batches."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch.nn import functional as F

from manytune.engine.base_model import (
    base_of,
    check_lengths,
    device_of,
    evaluation_mode,
    has_encoder,
    start_id,
)
from manytune.engine.padding import left_padded, longest_first, right_padded
from manytune.engine.static_batch import Progress
from manytune.errors import DataError

_NOT_SCORED = -100


class PromptAndCompletion(Protocol):
    """What `completion_nll` needs of a sequence; `manytune.data.encoding.encoded.Encoded` has it."""

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """Tokens that are given."""

    @property
    def completion_ids(self) -> tuple[int, ...]:
        """Tokens that are scored, the end token included; those in `given` aren't."""

    @property
    def given(self) -> tuple[tuple[int, int], ...]:
        """Ranges of `completion_ids` that aren't scored."""


def completion_nll(
    model: Any,
    sequences: Sequence[PromptAndCompletion],
    *,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> list[tuple[float, int]]:
    """Negative log likelihood of each completion given its prompt.

    For a completion `c` of `n` tokens this is `-sum_t log p(c_t | prompt, c_<t)`, in nats, from a log-softmax in
    float32. Sequences are left padded, so that the completions of a batch share the last columns and the language
    model's head runs on those only, where the model's `forward` accepts `logits_to_keep`.

    Args:
        model: A transformers causal language model or encoder-decoder, plain or with adapters.
        sequences: Prompts and completions as token ids.
        batch_size: Sequences in a batch.
        progress: Called after each batch.

    Returns:
        For each sequence, in order, the sum over its completion's tokens and their number.

    Raises:
        DataError: A prompt or a completion is empty, or a sequence is longer than the model's positions.
        ValueError: `batch_size` is below 1.
    """
    for index, sequence in enumerate(sequences):
        if not sequence.completion_ids:
            raise DataError(f"sequence {index} has no completion tokens, so there is nothing to score")
    check_lengths(model, [len(sequence.prompt_ids) for sequence in sequences], new_tokens=0)
    is_seq2seq = has_encoder(model)
    both = max if is_seq2seq else sum  # an encoder's positions aren't the decoder's
    lengths = [both((len(one.prompt_ids), len(one.completion_ids))) for one in sequences]
    check_lengths(model, lengths, new_tokens=0)
    results: list[tuple[float, int]] = [(0.0, 0)] * len(sequences)
    done = 0
    with torch.no_grad(), evaluation_mode(model):
        for rows in longest_first(lengths, batch_size):
            batch = [sequences[row] for row in rows]
            found = _seq2seq_nll(model, batch) if is_seq2seq else _causal_nll(model, batch)
            for row, nll, sequence in zip(rows, found, batch, strict=True):
                results[row] = (nll, sum(token != _NOT_SCORED for token in _targets(sequence)))
            done += len(rows)
            if progress is not None:
                progress(done, len(sequences))
    return results


def _causal_nll(model: Any, batch: Sequence[PromptAndCompletion]) -> list[float]:
    """Sums of the completions' negative log likelihoods of one left-padded batch."""
    device = device_of(model)
    # Pad tokens are masked and have no target, so any id will do.
    input_ids, attention_mask = left_padded([(*item.prompt_ids, *item.completion_ids) for item in batch], 0)
    longest = max(len(item.completion_ids) for item in batch)
    targets = torch.full((len(batch), longest), _NOT_SCORED)  # (B, longest), completions at the right
    for row, item in enumerate(batch):
        targets[row, longest - len(item.completion_ids) :] = torch.tensor(_targets(item))

    accepted = inspect.signature(base_of(model).forward).parameters
    inputs: dict[str, Any] = {"input_ids": input_ids.to(device), "attention_mask": attention_mask.to(device)}
    if "position_ids" in accepted:
        # Learned positions (GPT-2) must count from the first real token, not from the padding.
        inputs["position_ids"] = (attention_mask.cumsum(dim=1) - 1).clamp(min=0).to(device)
    if "logits_to_keep" in accepted:
        inputs["logits_to_keep"] = longest + 1
    logits = model(**inputs, use_cache=False).logits[:, -(longest + 1) : -1]  # (B, longest, V)
    return _row_sums(logits, targets)


def _seq2seq_nll(model: Any, batch: Sequence[PromptAndCompletion]) -> list[float]:
    """The same for an encoder-decoder: the encoder reads the prompts, the decoder is scored."""
    device = device_of(model)
    input_ids, attention_mask = right_padded([item.prompt_ids for item in batch], 0)
    start = start_id(model)
    assert start is not None  # every encoder-decoder that transformers generates with has one
    targets, _ = right_padded([_targets(item) for item in batch], _NOT_SCORED)  # (B, longest)
    decoder_input_ids, _ = right_padded([(start, *item.completion_ids[:-1]) for item in batch], 0)
    logits = model(
        input_ids=input_ids.to(device),
        attention_mask=attention_mask.to(device),
        decoder_input_ids=decoder_input_ids.to(device),
        use_cache=False,
    ).logits[:, -targets.shape[1] :]  # (B, longest, V)
    return _row_sums(logits, targets)


def _targets(item: PromptAndCompletion) -> list[int]:
    """A completion's tokens, with a mark in place of those that aren't scored."""
    tokens = list(item.completion_ids)
    for start, end in item.given:
        tokens[start:end] = [_NOT_SCORED] * (end - start)
    return tokens


def _row_sums(logits: torch.Tensor, targets: torch.Tensor) -> list[float]:
    """Each row's negative log likelihood of its targets; `_NOT_SCORED` marks columns without one."""
    losses = F.cross_entropy(
        logits.float().flatten(0, 1),
        targets.to(logits.device).flatten(),
        reduction="none",
        ignore_index=_NOT_SCORED,
    )
    sums = losses.view(targets.shape).cpu().double().sum(dim=1)
    return [float(value) for value in sums]
