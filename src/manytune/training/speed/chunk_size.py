"""How many logits the chunked cross-entropy holds at once."""

from __future__ import annotations

# In elements: a chunk's products stay large, and its memory is used again by the next.
CHUNK_LOGITS = 1 << 24


def rows_of_chunk(vocabulary: int, chunk_logits: int = CHUNK_LOGITS) -> int:
    """The most rows of logits in a chunk."""
    return max(1, chunk_logits // vocabulary)
