"""The scores that a recipe's `training.validation` may name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from manytune.data.nearest import did_you_mean
from manytune.errors import RecipeError
from manytune.evaluation.metrics import METRICS

if TYPE_CHECKING:
    from manytune.training.recipe import Recipe


def check_scores(recipe: Recipe) -> None:
    """Refuse scores that there aren't, before anything is loaded.

    Raises:
        RecipeError: Names the score, and the nearest that there is.
    """
    wanted = recipe.training.validation
    for name in wanted.scores if wanted else ():
        if name not in METRICS:
            raise RecipeError(
                f"training.validation.scores: expected scores among {', '.join(METRICS)}; found {name!r}"
                f"{did_you_mean(name, METRICS)}"
            )
