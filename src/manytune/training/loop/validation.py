"""Validations in the course of a training: the loss of the rows, and scores of answers to some of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from manytune.errors import RunError
from manytune.kernels.products import usual_products
from manytune.layer_forwards import uncompiled
from manytune.training.batches.batch import base_model
from manytune.training.distributed.processes import Processes
from manytune.training.recipe import TrainingRecipe
from manytune.training.training_plan import TrainingPlan


@dataclass(frozen=True)
class ValidationScores:
    """How a model's answers to validation prompts are scored; generation is handed in, since training has none.

    Attributes:
        measure: Gives the scores of a model, which it leaves as it was, by name.
        higher_is_better: Which direction is good, for each of these names.
    """

    measure: Callable[[nn.Module], Mapping[str, float]]
    higher_is_better: Mapping[str, bool]

    def of(self, model: nn.Module, processes: Processes) -> Mapping[str, float]:
        """A model's scores, for every process; the first one measures them."""
        if processes.count == 1:
            return self.measure(model)
        found = self.measure(model) if processes.is_first else {}
        names = sorted(self.higher_is_better)
        return dict(zip(names, processes.sum([found.get(name, 0.0) for name in names]), strict=True))


def check_validation(settings: TrainingRecipe, *, validates: bool, scores: ValidationScores | None) -> None:
    """Refuse settings that need validation rows or scores that there aren't.

    Raises:
        RunError: Names the setting.
    """
    if not validates:
        for key, wants in (
            ("keep: best", settings.keep == "best"),
            ("early_stopping", settings.early_stopping is not None),
            ("validation", settings.validation is not None),
        ):
            if wants:
                raise RunError(
                    f"training.{key} goes by validation rows, and there are none. Set some aside (data.validation)."
                )
    if settings.validation is not None and scores is None:
        raise RunError(
            "training.validation.scores takes generated answers, and no way to generate them was given: pass "
            "manytune.experiments.validation_scores.validation_scores, as `manytune train` does."
        )


def scores_are_due(step: int, settings: TrainingRecipe, plan: TrainingPlan) -> bool:
    """Whether validation scores are measured after this step; they are before the first and after the last."""
    if settings.validation is None:
        return False
    every = settings.validation.every
    return step == plan.steps or step % (plan.steps_per_epoch if every == "epoch" else every) == 0


@contextmanager
def as_after_training(model: nn.Module, attention: str) -> Iterator[None]:
    """Let a model compute in the middle of its training as it will when it is loaded from its files.

    Args:
        model: Inside of `prepared`, perhaps compiled.
        attention: The attention function that it had before.
    """
    base = base_model(model)
    before = base.config._attn_implementation
    base.set_attn_implementation(attention)
    try:
        with usual_products(model), uncompiled(model.modules()):
            yield
    finally:
        base.set_attn_implementation(before)
