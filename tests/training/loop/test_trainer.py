"""What is replaced of transformers' Trainer."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
from tests.training.tiny_run import as_rows, lora, sequences, settings
from transformers import Trainer

from manytune.errors import RunError
from manytune.store.run_log import StepReport, ValidationReport
from manytune.training.loop.train import train_model


def test_a_loss_of_nan_stops_the_run_and_names_step_and_rows() -> None:
    model = lora()
    rows = sequences(6)

    def break_it(report: StepReport | ValidationReport) -> None:
        if report.step == 2:
            [p for p in model.parameters() if p.requires_grad][-1].data.fill_(math.nan)

    order = np.random.default_rng([0, 1]).permutation(6)[:3]
    expected = ", ".join(f"rows.jsonl:{rows[i].row}" for i in order)
    with pytest.raises(RunError, match=rf"step 3: the loss is nan\. Rows of this step: {expected}\."):
        train_model(model, as_rows(rows), settings(), report=break_it)


def test_a_gradient_of_inf_stops_the_run_at_its_own_step() -> None:
    model = lora()
    parameter = next(p for p in model.parameters() if p.requires_grad)
    parameter.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(
        RunError, match=r"step 1: the gradient's norm is (nan|inf)\. Rows of this step: rows\.jsonl:"
    ):
        train_model(model, as_rows(sequences(4)), settings())


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("_wrap_model", ["self", "model", "training", "dataloader"]),
        ("_save_checkpoint", ["self", "model", "trial"]),
        ("_load_from_checkpoint", ["self", "resume_from_checkpoint", "model"]),
        ("_load_optimizer_and_scheduler", ["self", "checkpoint"]),
        ("_load_rng_state", ["self", "checkpoint"]),
    ],
)
def test_the_private_methods_that_are_replaced_are_still_there(method: str, parameters: list[str]) -> None:
    assert list(inspect.signature(getattr(Trainer, method)).parameters) == parameters
