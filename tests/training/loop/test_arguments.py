"""What a recipe's training section asks of transformers' Trainer."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.tiny_run import as_rows, lora, sequences, settings
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from manytune.errors import RunError
from manytune.training.loop.train import train_model
from manytune.training.loop.validation import ValidationScores
from manytune.training.recipe import recipe_from
from manytune.training.run import run


@pytest.mark.parametrize("steps", (1, 2))
def test_a_warm_up_leaves_the_last_step_its_rate(steps: int) -> None:
    # It begins at zero: over all of the steps, it would be a training that changes nothing.
    model = lora()
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    train_model(model, as_rows(sequences(3)), settings(max_steps=steps, warmup=0.99))
    after = dict(model.named_parameters())
    assert any(not torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_asking_for_a_gpu_where_there_is_none_is_an_error() -> None:
    with pytest.raises(RunError, match=r'training\.device is "cuda".*"auto" or "cpu"'):
        train_model(lora(), as_rows(sequences(3)), settings(device="cuda"))


def test_tensorboard_gets_the_curves(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    rows = sequences(6)
    result = train_model(
        lora(), as_rows(rows, rows[:2]), settings(tensorboard=True), tensorboard_directory=tmp_path
    )
    events = event_accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    losses = [event.value for event in events.Scalars("train/loss")]
    assert losses == pytest.approx([report.loss for report in result.step_reports])
    assert len(events.Scalars("eval/loss")) == len(result.validation_reports)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tensorboard": True}, r"needs the package tensorboard.*pip install .*\[track\]'"),
        ({"report_to": ("trackio",)}, r"training\.report_to trackio needs .*pip install trackio"),
    ],
)
def test_reporting_without_its_package_is_an_error(
    changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(RunError, match=message):
        run(recipe_from({"data": {"train": "isn't read"}, "training": changes}))


def test_an_integration_of_transformers_gets_the_curves_and_the_run_s_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[dict[str, float]] = []

    class Recorder(TrainerCallback):
        def on_log(self, args: Any, *_: Any, logs: dict[str, float], **__: Any) -> None:
            assert args.run_name == "my-run"
            logged.append(dict(logs))

    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", Recorder)
    rows = sequences(6)
    result = train_model(
        lora(),
        as_rows(rows, rows[:2]),
        settings(report_to=("wandb",), validation={"scores": ("rouge1",), "every": 2}),
        tensorboard_directory=tmp_path / "my-run" / "tensorboard",
        scores=ValidationScores(lambda _: {"rouge1": 0.5}, {"rouge1": True}),
    )
    assert [one["loss"] for one in logged if "loss" in one] == pytest.approx(
        [report.loss for report in result.step_reports]
    )
    assert [one["eval_rouge1"] for one in logged if "eval_loss" in one] == [0.5] * 3
