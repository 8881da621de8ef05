"""Ways to lay sequences out for one forward pass; all give the same loss and gradients."""

from __future__ import annotations

from manytune.data.nearest import did_you_mean
from manytune.errors import RecipeError
from manytune.training.batches import padded, padding_free, shared_prefix
from manytune.training.batches.attention.packed import packed_attention
from manytune.training.batches.batch import Batch, TokenSequence
from manytune.training.batches.grouping import plan_batches, rows_of_one
from manytune.training.batches.labelled import LabelledBatch
from manytune.training.batches.seq2seq import AnyBatch, Builder, Seq2SeqBatch
from manytune.training.batches.support import packed_training_obstacle
from manytune.training.batches.token_counts import TokenCounts

__all__ = [
    "BUILDERS",
    "AnyBatch",
    "Batch",
    "Builder",
    "LabelledBatch",
    "Seq2SeqBatch",
    "TokenCounts",
    "TokenSequence",
    "builder",
    "packed_attention",
    "packed_training_obstacle",
    "plan_batches",
    "rows_of_one",
]


BUILDERS: dict[str, Builder] = {
    "padded": padded.build,
    "padding-free": padding_free.build,
    "shared-prefix": shared_prefix.build,
}


def builder(name: str) -> Builder:
    """The builder of a layout.

    Args:
        name: One of `BUILDERS`.

    Raises:
        RecipeError: If there is no such layout; names the nearest one.
    """
    if name in BUILDERS:
        return BUILDERS[name]
    raise RecipeError(
        f"batching: expected one of {', '.join(BUILDERS)}; found {name!r}{did_you_mean(name, BUILDERS)}"
    )
