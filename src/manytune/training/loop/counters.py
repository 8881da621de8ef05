"""What a run has computed so far, as far as tokens and arithmetic go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from manytune.training.batches import Batch, Seq2SeqBatch, TokenCounts


@dataclass(frozen=True, slots=True)
class Tally:
    """Sums over batches. Add tallies with `+`.

    Attributes:
        counts: Tokens.
        pairs: Pairs of a computed token and one that it sees: itself and all before it, in layers with a sliding
            window too.
        logit_rows: Computed tokens that predict a target.
        skipped_tokens: Tokens on which the lower layers didn't run, since their results were kept; no pad tokens.
        skipped_pairs: Pairs of these.
    """

    counts: TokenCounts = field(default_factory=TokenCounts)
    pairs: int = 0
    logit_rows: int = 0
    skipped_tokens: int = 0
    skipped_pairs: int = 0

    @staticmethod
    def of(batch: Batch | Seq2SeqBatch, *, skipped: bool = False) -> Tally:
        """The tally of one batch, of which the lower layers may be skipped.

        Of an encoder-decoder's, pairs are left at zero.
        """
        logit_rows = int(batch.target_rows.unique().numel())
        if isinstance(batch, Seq2SeqBatch):
            computed = batch.input_ids.numel() + batch.decoder_input_ids.numel()
            pads = computed - batch.tokens_in
            return Tally(
                TokenCounts(batch.tokens_in, computed, computed, pads, round(batch.targets)), 0, logit_rows
            )
        seen = batch.position_ids + 1
        if batch.attention_mask is not None:
            seen = seen * batch.attention_mask
        counts, pairs = TokenCounts.of(batch), int(seen.sum())
        tokens = counts.tokens_computed - counts.pad_tokens
        return Tally(counts, pairs, logit_rows, tokens if skipped else 0, pairs if skipped else 0)

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> Tally:
        """Read what `dataclasses.asdict` made."""
        return Tally(**{**content, "counts": TokenCounts(**content["counts"])})

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.counts + other.counts,
            self.pairs + other.pairs,
            self.logit_rows + other.logit_rows,
            self.skipped_tokens + other.skipped_tokens,
            self.skipped_pairs + other.skipped_pairs,
        )
