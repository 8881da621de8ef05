"""How many tokens batches brought in, and how many the model ran on."""

from __future__ import annotations

from dataclasses import dataclass

from manytune.training.batches.batch import Batch


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Sums over batches. Add counts with `+`.

    Attributes:
        tokens_in: Input tokens of the sequences.
        tokens_padded: What padded batches of the same sequences would have computed.
        tokens_computed: What was computed.
        pad_tokens: How many of those were pad tokens.
        targets: Tokens learned.
    """

    tokens_in: int = 0
    tokens_padded: int = 0
    tokens_computed: int = 0
    pad_tokens: int = 0
    targets: int = 0

    @staticmethod
    def of(batch: Batch) -> TokenCounts:
        """The counts of one batch."""
        return TokenCounts(
            batch.tokens_in,
            batch.tokens_padded,
            batch.tokens_computed,
            batch.pad_tokens,
            round(batch.targets),
        )

    def __add__(self, other: TokenCounts) -> TokenCounts:
        return TokenCounts(
            self.tokens_in + other.tokens_in,
            self.tokens_padded + other.tokens_padded,
            self.tokens_computed + other.tokens_computed,
            self.pad_tokens + other.pad_tokens,
            self.targets + other.targets,
        )

    @property
    def saved_by_padding(self) -> float:
        """Share of a padded run's tokens that weren't computed because they are pad tokens. From 0 to 1."""
        return 1 - (self.tokens_in + self.pad_tokens) / self.tokens_padded if self.tokens_padded else 0.0

    @property
    def saved_by_sharing(self) -> float:
        """Share of the remaining tokens that weren't computed because their prefix was already.

        From 0 to 1.
        """
        remaining = self.tokens_in + self.pad_tokens
        return 1 - self.tokens_computed / remaining if remaining else 0.0

    @property
    def saved(self) -> float:
        """Share of a padded run's tokens that weren't computed: 1 - (1 - by padding) (1 - by sharing)."""
        return 1 - self.tokens_computed / self.tokens_padded if self.tokens_padded else 0.0
