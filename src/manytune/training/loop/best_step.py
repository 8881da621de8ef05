"""Which step of a training is kept, and when it stops early: by its validations alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from manytune.model.state_dicts import find_tuner
from manytune.sharded import fill, reshard, whole_for_files
from manytune.store.run_log import ValidationReport
from manytune.training.recipe import LOSS, TrainingRecipe

_SEPARATOR = "/"  # never part of a parameter's name


@dataclass(frozen=True, kw_only=True)
class KeptStep:
    """The step whose weights a training ends with.

    Attributes:
        step: Its number.
        metric: What decided, or would have.
        value: That metric at this step; None if it wasn't measured there.
        validation_loss: At this step; None without validation rows.
        scores: The validation scores at this step; empty if they weren't measured there.
        why: Why it is this one, in a sentence.
        stopped_early: Whether the training ended before its last step.
    """

    step: int
    metric: str
    value: float | None
    validation_loss: float | None
    scores: Mapping[str, float]
    why: str
    stopped_early: bool

    @property
    def measured(self) -> dict[str, float]:
        """Validation loss and scores by the names under which an adapter's manifest has them."""
        loss = {} if self.validation_loss is None else {LOSS: self.validation_loss}
        return loss | {f"validation_{name}": value for name, value in self.scores.items()}


@dataclass
class _Course:
    """What the validations so far amount to; JSON."""

    best: dict[str, Any] | None = None  # the ValidationReport
    seen: int = 0
    reference: float | None = None  # what early stopping compares with
    waited: int = 0
    before: float | None = None  # before the first step


class BestStep:
    """Follows a training's validations.

    Args:
        settings: The recipe's training section.
        higher_is_better: The direction of each score that is measured.
    """

    def __init__(self, settings: TrainingRecipe, higher_is_better: Mapping[str, bool]) -> None:
        self._settings = settings
        self._higher = {LOSS: False, **higher_is_better}[settings.best_metric]
        self._course = _Course()
        self.weights: dict[str, Tensor] = {}

    @property
    def stops(self) -> bool:
        """Whether early stopping ends the training here."""
        stopping = self._settings.early_stopping
        return stopping is not None and self._course.waited >= stopping.patience

    def add(self, report: ValidationReport, model: nn.Module) -> None:
        """Take in a validation; with `keep: best` the weights are copied if it is the best one.

        The model before its first step is compared with, and never kept.
        """
        value, course = self._value(report), self._course
        if report.step == 0:
            course.before = value
            return
        if value is None:
            return
        course.seen += 1
        if self._better(value, None if course.best is None else self._value(_read(course.best))):
            course.best = asdict(report)
            if self._settings.keep == "best":
                self.weights = _copied(model)
        stopping = self._settings.early_stopping
        if self._better(value, course.reference, by=stopping.min_delta if stopping else 0.0):
            course.reference, course.waited = value, 0
        else:
            course.waited += 1

    def finish(self, model: nn.Module, last: ValidationReport | None, *, step: int, steps: int) -> KeptStep:
        """Put the weights of the kept step back.

        Args:
            model: As the training left it.
            last: The last validation; None if there was none.
            step: Optimizer steps done.
            steps: Optimizer steps planned.
        """
        report, why = last, "it is the last one"
        best = None if self._course.best is None else _read(self._course.best)
        if self._settings.keep == "best" and best is not None:
            _put_back(model, self.weights)
            report = best
            why = f"it has the best {self._settings.best_metric} of {self._course.seen} validations"
        early = step < steps
        if early and (stopping := self._settings.early_stopping) is not None:
            why += (
                f"; the training stopped at step {step} of {steps}, after {stopping.patience} validations without a "
                f"better {self._settings.best_metric}"
            )
        return KeptStep(
            step=report.step if report is not None and self._settings.keep == "best" else step,
            metric=self._settings.best_metric,
            value=None if report is None else self._value(report),
            validation_loss=None if report is None else report.validation_loss,
            scores={} if report is None else report.scores,
            why=why + self._than_before(report),
            stopped_early=early,
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps next to `weights`; JSON."""
        return asdict(self._course)

    def load(self, state: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        """Go on from what a checkpoint kept."""
        self._course, self.weights = _Course(**state), dict(weights)

    def _than_before(self, report: ValidationReport | None) -> str:
        value, before = None if report is None else self._value(report), self._course.before
        if value is None or before is None or self._better(value, before):
            return ""
        return f"; before the training it was no worse ({before:.4g})"

    def _value(self, report: ValidationReport) -> float | None:
        metric = self._settings.best_metric
        value = report.validation_loss if metric == LOSS else report.scores.get(metric)
        return value if value is not None and math.isfinite(value) else None

    def _better(self, value: float, than: float | None, *, by: float = 0.0) -> bool:
        if than is None:
            return True
        return value > than + by if self._higher else value < than - by


def _read(report: Mapping[str, Any]) -> ValidationReport:
    return ValidationReport(**report)


def _copied(model: nn.Module) -> dict[str, Tensor]:
    """What trains, and what its method remembers of it (`TrainingHooks.state`), whole, on the CPU."""
    reshard(model)
    names = {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}
    found = {name: parameter.detach() for parameter, name in names.items()}
    for hooks in _hooks(model):
        for parameter, tensors in hooks.state().items():
            found |= {f"{names[parameter]}{_SEPARATOR}{key}": value for key, value in tensors.items()}
    return {name: value.to("cpu", copy=True).contiguous() for name, value in whole_for_files(found).items()}


def _put_back(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    reshard(model)
    parameters = {name: parameter for name, parameter in model.named_parameters() if name in weights}
    for name, parameter in parameters.items():
        fill(parameter, weights[name])
    remembered: dict[nn.Parameter, dict[str, Tensor]] = {}
    for name, value in weights.items():
        owner, separator, key = name.rpartition(_SEPARATOR)
        if separator:
            remembered.setdefault(parameters[owner], {})[key] = value.to(parameters[owner].device)
    for hooks in _hooks(model):
        hooks.load_state(remembered)


def _hooks(model: nn.Module) -> Any:
    tuner = find_tuner(model)
    return () if tuner is None else tuner.training_hooks()
