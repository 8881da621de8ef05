"""Shared-prefix batches: a batch becomes a trie, and every distinct prefix is computed once.

Causal attention makes a token's activations a function of the tokens up to it. Sequences with a common prefix
therefore share the rows of that prefix, in every layer. Sorting puts sequences with a common prefix next to each
other: sequence i computes the rows after its longest common prefix with sequence i - 1, and attends along its whole
path.

A target that is on several paths is computed once and counts as many times as it occurs, so loss and gradients are
those of the padded batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from manytune.training.batches.batch import Batch, TokenSequence, check_sequences
from manytune.training.batches.layout import IntArray, build_layout


def build(sequences: Sequence[TokenSequence], *, pad_id: int) -> Batch:
    """Lay sequences out as the depth-first rows of their trie.

    Args:
        sequences: Tokenised examples; at least one, none with an empty prompt or completion.
        pad_id: Not used: there are no pad tokens. Part of the signature that all layouts share.

    Returns:
        A batch of shape `(1, distinct prefixes)`. A sequence's last token predicts nothing and is never an
        input.

    Raises:
        DataError: If there is no sequence, or a prompt or a completion is empty.
    """
    check_sequences(sequences)
    del pad_id
    ordered = sorted(sequences, key=lambda s: (*s.prompt_ids, *s.completion_ids))
    return pack(ordered, share=True)


def pack(sequences: Sequence[TokenSequence], *, share: bool) -> Batch:
    """Lay sequences out in one row, in the order given.

    Args:
        sequences: Tokenised examples.
        share: Whether a sequence reuses the rows of its longest common prefix with the sequence before it.
    """
    prompts = np.array([len(s.prompt_ids) for s in sequences])
    lengths = prompts + np.array([len(s.completion_ids) for s in sequences]) - 1  # inputs of each sequence
    positions = np.arange(int(lengths.max()) + 1)
    tokens = np.full((len(sequences), positions.size), -1, dtype=np.int64)  # -1 equals no token
    tokens[positions <= lengths[:, None]] = [i for s in sequences for i in (*s.prompt_ids, *s.completion_ids)]

    shared = _common_prefixes(tokens, lengths) if share else np.zeros_like(lengths)
    paths = _paths(shared, lengths, positions[:-1])
    is_own = (positions[:-1] >= shared[:, None]) & (positions[:-1] < lengths[:, None])

    # The token at position p is predicted by the row at p - 1 of the same path.
    is_target = (positions[1:] >= prompts[:, None]) & (positions[1:] <= lengths[:, None])
    for row, sequence in enumerate(sequences):
        for start, end in sequence.given:
            is_target[row, prompts[row] + start - 1 : prompts[row] + end - 1] = False
    pairs = np.stack((paths[is_target], tokens[:, 1:][is_target]))
    (rows, labels), counts = np.unique(pairs, axis=1, return_counts=True)
    logit_rows, target_rows = np.unique(rows, return_inverse=True)

    has_rows = shared < lengths
    total = int(is_own.sum())
    return Batch(
        input_ids=torch.from_numpy(tokens[:, :-1][is_own])[None],
        position_ids=torch.from_numpy(np.broadcast_to(positions[:-1], is_own.shape)[is_own])[None],
        logit_positions=torch.from_numpy(logit_rows),
        target_rows=torch.from_numpy(target_rows),
        labels=torch.from_numpy(labels),
        weights=torch.from_numpy(counts).float(),
        attention_mask=None,
        layout=build_layout(paths[has_rows], shared[has_rows], lengths[has_rows]),
        tokens_in=int(lengths.sum()),
        tokens_padded=int(lengths.max()) * len(sequences),
        tokens_computed=total,
        pad_tokens=0,
    )


def _common_prefixes(tokens: IntArray, lengths: IntArray) -> IntArray:
    """Length of each sequence's longest common prefix with the one before it, at most the inputs of both."""
    differs = tokens[1:] != tokens[:-1]
    common = np.where(differs.any(axis=1), differs.argmax(axis=1), tokens.shape[1])
    limit = np.minimum(lengths[1:], lengths[:-1])
    return np.concatenate(([0], np.minimum(common, limit)))


def _paths(shared: IntArray, lengths: IntArray, positions: IntArray) -> IntArray:
    """Packed row of each position of each sequence.

    Position p of sequence i was computed by the last sequence up to i whose own rows start at p or before.
    """
    own = lengths - shared
    first_rows = np.cumsum(own) - own
    sequence = np.arange(len(lengths))[:, None]
    owner = np.maximum.accumulate(np.where(shared[:, None] <= positions, sequence, 0), axis=0)
    paths: IntArray = first_rows[owner] + positions - shared[owner]
    return paths
