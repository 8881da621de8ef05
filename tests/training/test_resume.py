"""Continuing in this process what was stopped in it; tests/faults kills whole processes."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.random_cases import some
from tests.training.tiny_run import as_rows, lora, sequences, weights_digest
from torch import nn

from manytune.errors import RunError
from manytune.store.run_log import Report, StepReport, ValidationReport
from manytune.training.loop.train import TrainingResult, train_model
from manytune.training.recipe import TrainingRecipe
from manytune.training.resume import Checkpoints, checkpoints_in, latest_checkpoint


class StoppedError(Exception):
    pass


def train(
    directory: Path,
    *,
    stop_after: int | None = None,
    resume: bool = False,
    name: str = "lora",
    **changes: Any,
) -> tuple[nn.Module, TrainingResult]:
    """Two epochs of 11 rows, 2 a batch: 6 batches an epoch, the last of one row."""
    usual: dict[str, Any] = {"epochs": 2.0, "batch_size": 2, "learning_rate": 0.01, "checkpoint_every": 1}
    model = lora(dropout=0.2 if name == "lora" else 0.0, name=name, layers=1)

    def stop(report: Report) -> None:
        if isinstance(report, StepReport) and report.step == stop_after:
            raise StoppedError

    result = train_model(
        model,
        as_rows(sequences(11), sequences(3, seed=1)),
        TrainingRecipe(**{**usual, **changes}),
        report=stop,
        checkpoints=Checkpoints(
            directory=directory, resume_from=latest_checkpoint(directory) if resume else None
        ),
    )
    return model, result


def interrupted(directory: Path, stop_after: int, **changes: Any) -> None:
    with pytest.raises(StoppedError):
        train(directory, stop_after=stop_after, **changes)


@dataclass(frozen=True)
class Whole:
    """A run that nothing interrupts, and the digest of its weights at the end."""

    directory: Path
    digest: str
    result: TrainingResult


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    directory = tmp_path_factory.mktemp("whole")
    model, result = train(directory)
    return Whole(directory, weights_digest(model), result)


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("stopped")
    interrupted(directory, 4)
    return directory


@pytest.fixture
def stopped(stopped_once: Path, tmp_path: Path) -> Path:
    """A copy of what a run leaves that ends in its fourth step: the checkpoints of steps 2 and 3."""
    shutil.copytree(stopped_once, tmp_path / "stopped")
    return tmp_path / "stopped"


@pytest.mark.parametrize("stop_after", some([2, 5, 6, 7, 11, 12], 2, 6, 7, 12))
def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path, whole: Whole, stop_after: int) -> None:
    """At the start, inside an epoch, at its end, at the start of the next, before the last step and in it.

    `make test` leaves out those inside an epoch and before the last, as the settings below stop there.
    """
    result = whole.result
    interrupted(tmp_path, stop_after)
    resumed, rest = train(tmp_path, resume=True)
    assert weights_digest(resumed) == whole.digest
    # The step at which it stopped wasn't saved yet, so it is done again; its numbers are the same.
    assert [r.loss for r in rest.step_reports] == [r.loss for r in result.step_reports[stop_after - 1 :]]
    assert [r.learning_rate for r in rest.step_reports] == [
        r.learning_rate for r in result.step_reports[stop_after - 1 :]
    ]
    assert rest.validation_loss == result.validation_loss
    assert (rest.steps, rest.tokens) == (result.steps, result.tokens)


@pytest.mark.parametrize(
    "changes",
    [
        {"accumulation": 4},  # windows of 4 and 2 batches
        {
            "accumulation": 2,
            "lr_scheduler": "cosine",
            "warmup": 0.3,
            "weight_decay": 0.1,
            "max_grad_norm": 0.1,
        },
        {"checkpoint_every": 3, "eval_every": 2, "max_steps": 7},
        {"max_steps": 8},  # ends inside the second epoch
        {"epochs": 1.5, "batching": "shared-prefix"},
        {"gradient_checkpointing": True, "max_steps": 4},
        {"name": "full", "max_steps": 4},
        {
            "token_budget": 30,
            "accumulation": 2,
            "epochs": 3.0,
        },  # stopped in an epoch with another number of batches
        {"max_steps": 4, "optimizer": "adafactor", "lora_fa": True},
        {"max_steps": 4, "optimizer": "adamw_8bit", "optimizer_options": {"min_8bit_size": 1}},
        {
            "max_steps": 5,
            "optimizer": "sgd",
            "optimizer_options": {"momentum": 0.9},
            "lr_scheduler": "reduce_lr_on_plateau",
            "lr_scheduler_options": {"patience": 0, "threshold": 1.0},
            "warmup": 0,
            "eval_every": 1,
            "keep": "best",
        },
    ],
    ids=[
        "accumulation",
        "lr_scheduler",
        "sparse checkpoints",
        "max_steps",
        "shared-prefix",
        "recomputation",
        "full",
        "token budget",
        "adafactor",
        "8 bits",
        "plateau",
    ],
)
def test_that_holds_for_every_setting(tmp_path: Path, changes: dict[str, Any]) -> None:
    whole, result = train(tmp_path / "whole", **changes)
    interrupted(tmp_path / "parts", result.steps - 2, **changes)
    resumed, _ = train(tmp_path / "parts", resume=True, **changes)
    assert weights_digest(resumed) == weights_digest(whole)


def test_a_run_may_be_interrupted_many_times(tmp_path: Path, whole: Whole) -> None:
    interrupted(tmp_path, 3)
    for stop_after in (7, 8, 11):
        interrupted(tmp_path, stop_after, resume=True)
    resumed, _ = train(tmp_path, resume=True)
    assert weights_digest(resumed) == whole.digest


@pytest.mark.parametrize("changes", [{}, {"max_steps": 8}])
def test_after_the_last_step_only_the_validation_is_repeated(tmp_path: Path, changes: dict[str, Any]) -> None:
    whole, result = train(tmp_path, **changes)
    again, rest = train(tmp_path, resume=True, **changes)
    assert weights_digest(again) == weights_digest(whole)
    assert rest.step_reports == ()
    assert rest.validation_reports[-1].step == result.steps
    assert rest.validation_loss == result.validation_loss


def test_the_last_two_checkpoints_are_kept_without_a_pickle(whole: Whole) -> None:
    kept = checkpoints_in(whole.directory)
    assert [path.name for path in kept] == ["step-00000011", "step-00000012"]
    assert sorted(file.name for file in kept[0].iterdir()) == [
        "digests.json",
        "optimizer.safetensors",
        "random.safetensors",
        "state.json",
        "trainer_state.json",
        "weights.safetensors",
    ]


def test_an_unfinished_checkpoint_is_ignored_and_removed(stopped: Path, whole: Whole) -> None:
    unfinished = stopped / ".step-00000004.manytune-tmp-00000000"
    unfinished.mkdir()
    (unfinished / "weights.safetensors").write_bytes(b"half")
    resumed, _ = train(stopped, resume=True)
    assert weights_digest(resumed) == whole.digest
    assert not unfinished.exists()


def test_every_random_generator_is_put_back(stopped_once: Path) -> None:
    checkpoint = latest_checkpoint(stopped_once)
    assert checkpoint is not None

    def draw() -> tuple[float, float, float, float]:
        # The second Gaussian of a pair is kept by the generator, and is part of its state.
        return random.gauss(0, 1), float(np.random.standard_normal()), float(torch.rand(())), random.random()

    checkpoint.restore_random()
    expected = draw()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    assert draw() != expected
    checkpoint.restore_random()
    assert draw() == expected


def test_validation_draws_no_random_number(tmp_path: Path) -> None:
    with_validation, _ = train(tmp_path / "a", eval_every=1)
    without, _ = train(tmp_path / "b", eval_every=100)
    assert weights_digest(with_validation) == weights_digest(without)


FILES = (
    "digests.json",
    "optimizer.safetensors",
    "random.safetensors",
    "state.json",
    "trainer_state.json",
    "weights.safetensors",
)


@pytest.mark.parametrize("name", FILES)
def test_a_checkpoint_with_one_flipped_bit_is_passed_over_for_the_one_before(
    stopped: Path, name: str
) -> None:
    file = checkpoints_in(stopped)[-1] / name
    whole, draw = file.read_bytes(), random.Random(name)
    for position in {0, len(whole) - 1, *(draw.randrange(len(whole)) for _ in range(12))}:
        content = bytearray(whole)
        content[position] ^= 1 << draw.randrange(8)
        file.write_bytes(content)
        said: list[str] = []
        found = latest_checkpoint(stopped, said.append)
        assert found is not None and found.position.step == 2
        where = "step-00000003/" if name == "digests.json" else f"step-00000003/{name}"
        assert len(said) == 1 and where in said[0] and "the checkpoint is damaged" in said[0]
    file.unlink()
    again = latest_checkpoint(stopped)
    assert again is not None and again.position.step == 2


def test_a_run_whose_last_checkpoint_is_damaged_ends_as_it_would_have(stopped: Path, whole: Whole) -> None:
    weights = checkpoints_in(stopped)[-1] / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-20])
    resumed, _ = train(stopped, resume=True)
    assert weights_digest(resumed) == whole.digest


@pytest.mark.parametrize("damage", ["[]", "{", "null", '{"format": 4}', "[" * 100_000, ""])
def test_where_every_checkpoint_is_damaged_the_error_names_the_file(stopped: Path, damage: str) -> None:
    for path in checkpoints_in(stopped):
        (path / "state.json").write_text(damage)
    with pytest.raises(
        RunError, match=r"step-00000003/state\.json: the checkpoint is damaged.*no whole one.*--overwrite"
    ):
        latest_checkpoint(stopped)


def test_a_checkpoint_of_another_format_is_refused(stopped: Path) -> None:
    state = checkpoints_in(stopped)[-1] / "state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "format": 99}))
    digests = state.with_name("digests.json")
    known = {**json.loads(digests.read_text()), "state.json": hashlib.sha256(state.read_bytes()).hexdigest()}
    digests.write_text(json.dumps(known))
    with pytest.raises(RunError, match="has format 99 and this manytune reads 5"):
        latest_checkpoint(stopped)
    state.write_text(json.dumps({**json.loads(state.read_text()), "format": 3}))
    digests.unlink()  # as earlier releases wrote it
    with pytest.raises(RunError, match="has format 3 and this manytune reads 5"):
        latest_checkpoint(stopped)


def test_a_checkpoint_of_another_model_is_refused(stopped_once: Path) -> None:
    checkpoint = latest_checkpoint(stopped_once)
    assert checkpoint is not None
    with pytest.raises(
        RunError, match=r"14 trainable .* and the model 14; they differ in a shape.*--overwrite"
    ):
        checkpoint.restore_weights(lora(r=3, layers=1))


def test_without_checkpoints_there_is_nothing_to_continue_from(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "absent") is None
    interrupted(tmp_path / "none", 3, checkpoint_every=None)
    assert latest_checkpoint(tmp_path / "none") is None


def test_the_baseline_is_not_measured_again(tmp_path: Path) -> None:
    interrupted(tmp_path, 8)
    _, rest = train(tmp_path, resume=True)
    assert all(isinstance(report, ValidationReport) and report.step > 0 for report in rest.validation_reports)


@pytest.mark.parametrize("stop_after", [5, 6])
def test_a_run_that_stopped_early_and_was_killed_has_its_best_step(tmp_path: Path, stop_after: int) -> None:
    """It stops at step 6, and dies before it or right after its last checkpoint."""
    changes: dict[str, Any] = {
        "eval_every": 2,
        "keep": "best",
        "early_stopping": {"patience": 2, "min_delta": 100.0},
        "learning_rate": 0.3,
        "warmup": 0,
    }
    whole, result = train(tmp_path / "whole", **changes)
    assert result.steps == 6
    if stop_after < 6:
        interrupted(tmp_path / "whole", stop_after, **changes)
    resumed, rest = train(tmp_path / "whole", resume=True, **changes)
    assert weights_digest(resumed) == weights_digest(whole)
    assert rest.kept == result.kept
