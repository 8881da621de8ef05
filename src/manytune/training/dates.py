"""The date in a chat template that writes today's: that of the run's start, as long as the run lasts."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING

from manytune.training.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def dated(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, date: str | None = None) -> Recipe:
    """Return a recipe that says the date, if the base's chat template writes one and the recipe doesn't say it.

    Args:
        recipe: The recipe.
        tokenizer: Of its base.
        date: That of what is continued; None for now.
    """
    return recipe.model_copy(update={"data": recipe.data.dated(tokenizer, date or now())})


def now() -> str:
    """The present time, to the second, in ISO format."""
    return datetime.datetime.now().replace(microsecond=0).isoformat()
