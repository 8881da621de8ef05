"""What a run has computed so far, counted in tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from typing import Any

from manytune.training.batches import AnyBatch, LabelledBatch, Seq2SeqBatch, TokenCounts
from manytune.training.distributed.processes import Processes


@dataclass(frozen=True, slots=True)
class Counters:
    """Sums over batches. Add them with `+`.

    Attributes:
        tokens: Tokens read, computed and learned.
        pairs: Pairs of a computed token and one that it sees: itself and all before it, in layers with a sliding
            window too.
        logit_rows: Computed tokens that predict a target.
        skipped_tokens: Tokens on which the lower layers didn't run, since their results were kept; no pad tokens.
        skipped_pairs: Pairs of these.
    """

    tokens: TokenCounts = field(default_factory=TokenCounts)
    pairs: int = 0
    logit_rows: int = 0
    skipped_tokens: int = 0
    skipped_pairs: int = 0

    @property
    def real_tokens(self) -> int:
        """Computed tokens that aren't pad tokens."""
        return self.tokens.tokens_computed - self.tokens.pad_tokens

    @staticmethod
    def of(batch: AnyBatch, *, skipped: bool = False) -> Counters:
        """The counters of one batch.

        Args:
            batch: The batch; an encoder-decoder's and a classifier's have no pairs counted.
            skipped: Whether the lower layers didn't run on it.
        """
        if isinstance(batch, LabelledBatch):
            computed, rows = batch.input_ids.numel(), round(batch.targets)
            pads = computed - batch.tokens_in
            return Counters(TokenCounts(batch.tokens_in, computed, computed, pads, rows), 0, rows)
        logit_rows = int(batch.target_rows.unique().numel())
        if isinstance(batch, Seq2SeqBatch):
            computed = batch.input_ids.numel() + batch.decoder_input_ids.numel()
            pads = computed - batch.tokens_in
            return Counters(
                TokenCounts(batch.tokens_in, computed, computed, pads, round(batch.targets)), 0, logit_rows
            )
        seen = batch.position_ids + 1
        if batch.attention_mask is not None:
            seen = seen * batch.attention_mask
        tokens, pairs = TokenCounts.of(batch), int(seen.sum())
        real = tokens.tokens_computed - tokens.pad_tokens
        return Counters(tokens, pairs, logit_rows, real if skipped else 0, pairs if skipped else 0)

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> Counters:
        """Read what `dataclasses.asdict` made."""
        return Counters(**{**content, "tokens": TokenCounts(**content["tokens"])})

    def over(self, processes: Processes) -> Counters:
        """The sum over the processes, each of which calls it."""
        tokens, *others = astuple(self)
        summed = [round(number) for number in processes.sum([*tokens, *others])]
        return Counters(TokenCounts(*summed[: len(tokens)]), *summed[len(tokens) :])

    def __add__(self, other: Counters) -> Counters:
        return Counters(
            self.tokens + other.tokens,
            self.pairs + other.pairs,
            self.logit_rows + other.logit_rows,
            self.skipped_tokens + other.skipped_tokens,
            self.skipped_pairs + other.skipped_pairs,
        )
