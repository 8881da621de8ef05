"""What a model reads of a request before it answers: the prompt, or an encoder's input and the answer's start."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """What an encoder reads.

    Attributes:
        key: Equal keys mean equal tokens of one tenant, read with the same adapter.
        tokens: Token ids.
        embeddings: Virtual tokens before them, (tokens, hidden), or None.
    """

    key: bytes
    tokens: tuple[int, ...]
    embeddings: Tensor | None = None

    @property
    def virtual_tokens(self) -> int:
        """Number of virtual tokens."""
        return 0 if self.embeddings is None else self.embeddings.shape[0]

    @property
    def length(self) -> int:
        """Tokens that the decoder attends to, virtual ones included."""
        return self.virtual_tokens + len(self.tokens)


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelInput:
    """What is read before the first token of an answer is chosen.

    Attributes:
        tokens: What the decoder reads: the prompt, or the token that answers of an encoder-decoder begin with.
        max_tokens: The largest number of tokens that the decoder may have: virtual ones, `tokens` and the answer.
        embeddings: Virtual tokens that the decoder reads before `tokens`, (tokens, hidden), or None.
        prefix_keys: Keys of the blocks of `tokens`, if prefixes are cached.
        source: What the encoder reads first; None for a decoder without one.
    """

    tokens: tuple[int, ...]
    max_tokens: int
    embeddings: Tensor | None = None
    prefix_keys: tuple[bytes, ...] = ()
    source: Source | None = None

    @property
    def embedded_tokens(self) -> int:
        """Number of virtual tokens that the decoder reads."""
        return 0 if self.embeddings is None else self.embeddings.shape[0]
