"""A method's own part in the training loop; AdaLoRA has one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.random_cases import some
from tests.store.tiny import tiny_model
from tests.training.tiny_run import as_rows, lora, recipe_content, sequences, settings, weights_digest
from torch import nn

from manytune.errors import RunError
from manytune.methods.registry import peft_config_from
from manytune.model.attach import get_peft_model
from manytune.training.batches import builder
from manytune.training.loop.method_hooks import method_callbacks
from manytune.training.loop.train import train_model
from manytune.training.method_recipe import MethodRecipe
from manytune.training.recipe import recipe_from
from manytune.training.resume import Checkpoints, latest_checkpoint
from manytune.training.run import run
from manytune.training.speed.chunked_cross_entropy import loss_sum

SCHEDULE = {"init_r": 4, "target_r": 1, "tinit": 1, "tfinal": 2, "total_step": 8}


def adalora(**options: Any) -> Any:
    model = tiny_model()
    torch.manual_seed(0)
    config = peft_config_from(
        "adalora", task_type="CAUSAL_LM", target_modules="all-linear", **SCHEDULE | options
    )
    return get_peft_model(model, config)


def kept(model: Any) -> int:
    pattern = model.peft_config["default"].rank_pattern
    return sum(map(sum, pattern.values()))


def live(model: Any) -> int:
    """Triplets whose E isn't zero."""
    return sum(int((p != 0).sum()) for name, p in model.named_parameters() if "lora_E" in name)


@pytest.mark.parametrize("tfinal", [0, 2])
def test_training_cuts_the_ranks_down_to_the_target(tfinal: int) -> None:
    model = adalora(tfinal=tfinal)
    train_model(model, as_rows(sequences(10)), settings(max_steps=8))
    layers = 2 * 7
    assert kept(model) == layers
    assert live(model) == layers


def test_a_step_follows_the_loss_with_the_penalty() -> None:
    rows = sequences(6)
    model, twin = adalora(), adalora()
    train_model(
        model,
        as_rows(rows),
        settings(max_steps=8, batch_size=6, warmup=0.0, lr_scheduler="constant", max_grad_norm=0.5),
    )
    trained = [p for p in twin.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.01, weight_decay=0.0)
    batch = builder("padded")(rows, pad_id=0)
    for step in range(1, 9):
        penalty = twin.base_model.orthogonality_penalty()
        (loss_sum(twin, batch) / batch.targets + penalty).backward()
        nn.utils.clip_grad_norm_(trained, 0.5)
        optimizer.step()
        twin.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    assert model.peft_config["default"].rank_pattern == twin.peft_config["default"].rank_pattern
    for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4, msg=name)


@pytest.mark.parametrize("interrupted_at", some([1, 4, 7], 4))
def test_a_resumed_run_goes_on_with_the_same_bits(tmp_path: Path, interrupted_at: int) -> None:
    rows, usual = sequences(10), settings(max_steps=8, checkpoint_every=interrupted_at)
    whole = adalora()
    train_model(whole, as_rows(rows), usual)

    class StopHereError(Exception):
        pass

    def interrupt(event: Any) -> None:
        if event.step == min(interrupted_at + 1, 8):
            raise StopHereError

    with pytest.raises(StopHereError):
        train_model(
            adalora(), as_rows(rows), usual, report=interrupt, checkpoints=Checkpoints(directory=tmp_path)
        )
    found = latest_checkpoint(tmp_path)
    assert found is not None and found.position.step == interrupted_at
    again = adalora()
    train_model(again, as_rows(rows), usual, checkpoints=Checkpoints(directory=tmp_path, resume_from=found))
    assert again.peft_config["default"].rank_pattern == whole.peft_config["default"].rank_pattern
    assert weights_digest(again) == weights_digest(whole)


def test_a_schedule_longer_than_the_training_is_refused() -> None:
    with pytest.raises(RunError, match=r"last cut is at step 6 .* 3 steps.* Set method.total_step to 3"):
        train_model(adalora(), as_rows(sequences(4)), settings(max_steps=3))


def test_other_methods_train_without_it() -> None:
    assert method_callbacks(lora(), steps=3) == []


def test_a_recipe_plans_for_its_own_number_of_steps(tmp_path: Path) -> None:
    content = recipe_content(tmp_path)
    method = {"name": "adalora", "target_modules": "all-linear", "init_r": 3, "target_r": 1, "tfinal": 1}
    finished = run(recipe_from(content | {"method": method}))
    config = json.loads((finished.adapter / "adapter_config.json").read_text())
    assert config["total_step"] == finished.training.steps


def test_a_recipe_may_plan_for_a_number_of_its_own() -> None:
    method = MethodRecipe(name="adalora", total_step=7)
    assert method.peft_config().to_dict()["total_step"] == 7
