"""Padding-free batches: every sequence once, end to end in one row, without a pad token."""

from __future__ import annotations

from collections.abc import Sequence

from manytune.training.batches.batch import Batch, TokenSequence, check_sequences
from manytune.training.batches.shared_prefix import pack


def build(sequences: Sequence[TokenSequence], *, pad_id: int) -> Batch:
    """Lay sequences out one after the other in one row.

    Args:
        sequences: Tokenised examples; at least one, none with an empty prompt or completion.
        pad_id: Not used: there are no pad tokens. Part of the signature that all layouts share.

    Returns:
        A batch of shape `(1, tokens)`. A sequence's last token predicts nothing and is never an input.

    Raises:
        DataError: If there is no sequence, or a prompt or a completion is empty.
    """
    check_sequences(sequences)
    del pad_id
    return pack(sequences, share=False)
