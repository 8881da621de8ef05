"""Which step is kept, and when a training stops: from validations alone."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from tests.training.tiny_run import as_rows, lora, sequences, settings
from torch import nn

from manytune.errors import RunError
from manytune.methods.registry import peft_config_from
from manytune.model.attach import get_peft_model
from manytune.store.run_log import ValidationReport
from manytune.training.loop.best_step import BestStep, KeptStep
from manytune.training.loop.train import train_model
from manytune.training.loop.validation import ValidationScores
from manytune.training.recipe import TrainingRecipe

SCORES = {"validation": {"scores": ("rouge1",)}, "best_metric": "rouge1"}


def follow(
    wanted: TrainingRecipe,
    losses: list[float],
    scores: list[float | None] | None = None,
    *,
    through_json: bool = False,
) -> tuple[KeptStep, float]:
    """The kept step, and the weight that the model has in the end; step n leaves n in it."""
    model, last = nn.Linear(1, 1, bias=False), None
    best = BestStep(wanted, {"rouge1": True})
    for step, loss in enumerate(losses):
        nn.init.constant_(model.weight, step)
        given = None if scores is None else scores[step]
        last = ValidationReport(step, 9, loss, 0.0, {} if given is None else {"rouge1": given})
        best.add(last, model)
        if best.stops:
            break
        if through_json:  # as a checkpoint keeps it
            state, weights = json.loads(json.dumps(best.state())), best.weights
            best = BestStep(wanted, {"rouge1": True})
            best.load(state, weights)
    kept = best.finish(model, last, step=step, steps=9)
    return kept, model.weight.item()


@pytest.mark.parametrize("through_json", [False, True])
@pytest.mark.parametrize(
    ("changes", "losses", "scores", "kept"),
    [
        ({"keep": "last"}, [9, 3, 1, 2], None, 3),
        ({"keep": "best"}, [9, 3, 1, 2], None, 2),
        ({"keep": "best"}, [9, 1, 1, 1], None, 1),  # the first of equals
        ({"keep": "best"}, [0, 3, 2, 4], None, 2),  # never the model before its first step
        ({"keep": "best"}, [9, float("nan"), 2, float("inf")], None, 2),
        ({"keep": "best", **SCORES}, [9, 3, 2, 1], [0, 0.5, 0.7, 0.6], 2),  # higher is better
        ({"keep": "best", **SCORES}, [9, 3, 2, 1], [0, 0.5, None, 0.4], 1),  # measured at some steps only
    ],
)
def test_the_step_that_is_kept(
    changes: dict[str, Any], losses: list[float], scores: Any, kept: int, through_json: bool
) -> None:
    found, weight = follow(settings(**changes), losses, scores, through_json=through_json)
    assert (found.step, weight) == (kept, kept)
    assert found.validation_loss == losses[kept]


@pytest.mark.parametrize("through_json", [False, True])
@pytest.mark.parametrize(
    ("stopping", "losses", "last"),
    [
        ({"patience": 1}, [9, 5, 6, 4], 2),
        ({"patience": 2}, [9, 5, 6, 4, 5, 4, 3], 5),
        ({"patience": 2, "min_delta": 1.0}, [9, 5, 4.5, 4.1, 1], 3),  # slower than min_delta
        ({"patience": 1, "min_delta": 1.0}, [9, 5, 3.9, 2, 0], 4),
        ({"patience": 1}, [0, 5, 4, 3], 3),  # the model before training doesn't count
    ],
)
def test_the_step_at_which_it_stops(
    stopping: dict[str, Any], losses: list[float], last: int, through_json: bool
) -> None:
    found, _ = follow(settings(early_stopping=stopping), losses, through_json=through_json)
    assert found.step == last


def test_the_record_says_why() -> None:
    found, _ = follow(settings(keep="best", early_stopping={"patience": 1}), [1.5, 3, 2, 4])
    assert found.why == (
        "it has the best validation_loss of 3 validations; the training stopped at step 3 of 9, after 1 validations "
        "without a better validation_loss; before the training it was no worse (1.5)"
    )
    assert found.measured == {"validation_loss": 2}


def test_a_training_ends_with_the_weights_of_its_best_step() -> None:
    """A rate far too high: the loss falls first, and rises later."""
    wanted: dict[str, Any] = {"max_steps": 6, "eval_every": 1, "learning_rate": 1.0, "warmup": 0}
    seen: dict[int, torch.Tensor] = {}
    model = lora()
    parameter = [p for p in model.parameters() if p.requires_grad][-1]

    def remember(report: object) -> None:
        if isinstance(report, ValidationReport):
            seen[report.step] = parameter.detach().clone()

    rows = as_rows(sequences(6), sequences(3, seed=1))
    result = train_model(model, rows, settings(**wanted, keep="best"), report=remember)
    losses = {report.step: report.validation_loss for report in result.validation_reports if report.step}
    best = min(losses, key=lambda step: losses[step])
    assert best != result.steps, "the last step is the best, so this shows nothing"
    assert (result.kept.step, result.validation_loss) == (best, losses[best])
    assert torch.equal(parameter, seen[best])


def test_early_stopping_ends_the_training() -> None:
    stopping = {"patience": 1, "min_delta": 100.0}
    rows = as_rows(sequences(6), sequences(3, seed=1))
    result = train_model(lora(), rows, settings(max_steps=9, eval_every=2, early_stopping=stopping))
    assert result.steps == len(result.step_reports) == 4
    assert result.kept.stopped_early


def test_scores_come_every_so_many_steps_and_after_the_last() -> None:
    asked: list[nn.Module] = []
    scores = ValidationScores(lambda model: asked.append(model) or {"rouge1": len(asked)}, {"rouge1": True})
    wanted = settings(max_steps=5, eval_every=3, validation={"scores": ("rouge1",), "every": 2})
    rows = as_rows(sequences(6), sequences(3, seed=1))
    result = train_model(lora(), rows, wanted, scores=scores)
    assert {report.step: dict(report.scores) for report in result.validation_reports} == {
        0: {"rouge1": 1},
        2: {"rouge1": 2},
        3: {},
        4: {"rouge1": 3},
        5: {"rouge1": 4},
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep": "best"}, "training.keep: best goes by validation rows, and there are none"),
        ({"early_stopping": {"patience": 1}}, "training.early_stopping goes by validation rows"),
        ({"validation": {"scores": ("rouge1",)}}, "training.validation goes by validation rows"),
    ],
)
def test_without_validation_rows_nothing_is_best(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RunError, match=message):
        train_model(lora(), as_rows(sequences(3)), settings(**changes))


def test_scores_without_a_way_to_generate_are_an_error() -> None:
    with pytest.raises(RunError, match=r"pass manytune\.experiments\.validation_scores"):
        train_model(lora(), as_rows(sequences(3), sequences(2)), settings(validation={"scores": ("rouge1",)}))


def test_adalora_s_best_step_has_the_ranks_that_it_had() -> None:
    options = {"init_r": 4, "target_r": 1, "tinit": 1, "tfinal": 2, "deltaT": 1, "total_step": 6}
    model = get_peft_model(
        lora().unload(),
        peft_config_from("adalora", task_type="CAUSAL_LM", target_modules="all-linear", **options),
    )
    wanted = settings(
        max_steps=6, eval_every=1, keep="best", validation={"scores": ("s",), "every": 1}, best_metric="s"
    )
    patterns: list[Any] = []

    def first_is_best(_: nn.Module) -> dict[str, float]:
        patterns.append(json.dumps(model.peft_config["default"].rank_pattern))
        return {"s": 1.0 if len(patterns) == 3 else 0.0}

    rows = as_rows(sequences(6), sequences(3, seed=1))
    result = train_model(model, rows, wanted, scores=ValidationScores(first_is_best, {"s": True}))
    assert result.kept.step == 2
    assert patterns[2] != patterns[-1]
    assert json.dumps(model.peft_config["default"].rank_pattern) == patterns[2]
