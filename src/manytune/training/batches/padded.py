"""Padded batches: the baseline that every model can run.

One row a sequence, pad tokens on the left. Completions then end in the same column, and the head runs on the
columns of the completions alone, not on the prompts. A sequence's last token predicts nothing and
nothing attends to it, so it is a label and never an input.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from manytune.training.batches.batch import Batch, TokenSequence, check_sequences, learned


def build(sequences: Sequence[TokenSequence], *, pad_id: int) -> Batch:
    """Lay sequences out as rows of equal length, padded on the left.

    Args:
        sequences: Tokenised examples; at least one, none with an empty prompt or completion.
        pad_id: Any valid token id; it fills masked columns only.

    Returns:
        A batch of shape `(len(sequences), longest sequence)`.

    Raises:
        DataError: If there is no sequence, or a prompt or a completion is empty.
    """
    check_sequences(sequences)
    completions = torch.tensor([len(s.completion_ids) for s in sequences])
    # Inputs of each sequence.
    lengths = torch.tensor([len(s.prompt_ids) for s in sequences]) + completions - 1
    width = int(lengths.max())

    columns = torch.arange(width)
    pads = (width - lengths)[:, None]
    is_token = columns >= pads  # (rows, width)
    input_ids = torch.full((len(sequences), width), pad_id)
    inputs = [(*s.prompt_ids, *s.completion_ids[:-1]) for s in sequences]
    input_ids[is_token] = torch.tensor([token for ids in inputs for token in ids])

    # The token in column c + 1 is predicted by column c.
    is_target = torch.zeros_like(is_token)  # (rows, width)
    for row, sequence in enumerate(sequences):
        is_target[row, width - len(sequence.completion_ids) :] = torch.tensor(learned(sequence))
    logit_columns = is_target.any(dim=0).nonzero().squeeze(1)
    return Batch(
        input_ids=input_ids,
        position_ids=(columns - pads).clamp_(min=0),
        logit_positions=logit_columns,
        target_rows=is_target[:, logit_columns].flatten().nonzero().squeeze(1),
        labels=torch.tensor(
            [
                i
                for s in sequences
                for i, bears_loss in zip(s.completion_ids, learned(s), strict=True)
                if bears_loss
            ]
        ),
        weights=torch.ones(int(is_target.sum())),
        attention_mask=is_token.long(),
        layout=None,
        tokens_in=int(lengths.sum()),
        tokens_padded=input_ids.numel(),
        tokens_computed=input_ids.numel(),
        pad_tokens=input_ids.numel() - int(lengths.sum()),
    )
