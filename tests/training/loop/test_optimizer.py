"""Optimizers and schedules by name: transformers' own, and what LoRA+ and LoRA-FA make of an optimizer's groups."""

from __future__ import annotations

import importlib.util
import inspect
import math
from typing import Any

import peft.optimizers.lorafa
import pytest
import torch
from peft.optimizers import create_lorafa_optimizer, create_loraplus_optimizer
from tests.training.tiny_run import as_rows, lora, sequences, settings
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
from transformers.trainer_utils import SchedulerType

from manytune.errors import RunError
from manytune.methods.registry import peft_config_from
from manytune.model.attach import get_peft_model
from manytune.training.loop.optimizer import freeze_first_factors, parameter_groups, project_gradients
from manytune.training.loop.train import train_model
from manytune.training.optimizers import OPTIMIZERS
from manytune.training.schedules import SCHEDULES


def named(model: nn.Module, groups: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of each parameter by its name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in groups
        for parameter in group["params"]
    }


def groups_of(model: nn.Module, **changes: Any) -> dict[str, tuple[float, float]]:
    decaying = {name for name, _ in model.named_parameters()}
    return named(model, parameter_groups(model, settings(**changes), decaying=decaying))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_has_the_options_that_its_class_takes(name: str, tmp_path: Any) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path), optim=OPTIMIZERS[name].name, report_to="none")
    kind, _ = Trainer.get_optimizer_cls_and_kwargs(arguments)
    assert set(OPTIMIZERS[name].options) <= set(inspect.signature(kind).parameters)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_has_the_options_that_its_function_takes(name: str) -> None:
    kind = SCHEDULES[name]
    function: Any = TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(kind.name)]
    if kind.by_validation:
        function = torch.optim.lr_scheduler.ReduceLROnPlateau
    assert set(kind.options) <= set(inspect.signature(function).parameters)


@pytest.mark.parametrize(
    ("changes", "rates"),
    [
        ({"lr_scheduler": "constant", "warmup": 0.5}, [0, 1 / 3, 2 / 3, 1, 1, 1]),
        (
            {"lr_scheduler": "warmup_stable_decay", "lr_scheduler_options": {"decay_type": "linear"}},
            [1, 1, 1, 1, 1, 1],  # a tenth of six steps, rounded, is the last, which begins the decay
        ),
        (
            {
                "lr_scheduler": "warmup_stable_decay",
                "lr_scheduler_options": {"num_decay_steps": 0.5, "decay_type": "linear"},
            },
            [1, 1, 1, 1, 2 / 3, 1 / 3],
        ),
        (
            {"lr_scheduler": "polynomial", "lr_scheduler_options": {"power": 2.0, "lr_end": 0.0}},
            [(1 - step / 6) ** 2 for step in range(6)],
        ),
        (
            {"lr_scheduler": "cosine_with_min_lr", "lr_scheduler_options": {"min_lr_rate": 0.1}},
            [0.1 + 0.9 * (1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)],
        ),
    ],
)
def test_the_rate_follows_the_schedule(changes: dict[str, Any], rates: list[float]) -> None:
    result = train_model(lora(), as_rows(sequences(6)), settings(max_steps=6, **{"warmup": 0, **changes}))
    found = [report.learning_rate / 0.01 for report in result.step_reports]
    assert found == pytest.approx(rates, abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"lr_scheduler": "warmup_stable_decay", "lr_scheduler_options": {"num_decay_steps": 9}},
            r"1 steps of warm-up and 9 of decay don't fit into 2",
        ),
        (
            {"lr_scheduler": "polynomial", "lr_scheduler_options": {"lr_end": 1.0}},
            r"lr_scheduler_options can't be used with polynomial: .*lr_end",
        ),
        ({"lr_scheduler": "reduce_lr_on_plateau", "warmup": 0}, r"follows the validation loss; set"),
        (
            {"optimizer": "sgd", "optimizer_options": {"nesterov": True}},
            r"optimizer_options can't be used with sgd: Nesterov momentum requires",
        ),
    ],
)
def test_what_the_training_can_t_do_is_refused_before_its_first_step(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RunError, match=message):
        train_model(lora(), as_rows(sequences(3)), settings(max_steps=2, **changes))


def test_an_optimizer_whose_package_is_missing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(RunError, match=r"lion_8bit needs the package bitsandbytes.*pip install .*\[quant\]'"):
        train_model(lora(), as_rows(sequences(3)), settings(optimizer="lion_8bit"))


def test_loraplus_gives_each_factor_the_rate_that_peft_gives_it() -> None:
    model = lora()
    ours = groups_of(model, loraplus_lr_ratio=16, learning_rate=1e-3, weight_decay=0.1)
    peers = create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16, loraplus_weight_decay=0.1
    )
    assert ours == named(model, peers.param_groups)


def test_loraplus_and_lora_fa_need_factors() -> None:
    config = peft_config_from("ia3", task_type="CAUSAL_LM")
    for changes in ({"loraplus_lr_ratio": 4}, {"lora_fa": True}):
        model = get_peft_model(lora().unload(), config)
        with pytest.raises(RunError, match="is for methods that add a product of two factors A and B"):
            train_model(model, as_rows(sequences(3)), settings(**changes))


def test_lora_fa_refuses_an_update_that_isn_t_a_product_alone() -> None:
    config = peft_config_from("lora", task_type="CAUSAL_LM", use_dora=True, target_modules="all-linear")
    with pytest.raises(RunError, match=r"at .*q_proj it has DoRA's magnitudes"):
        freeze_first_factors(get_peft_model(lora().unload(), config), settings(lora_fa=True))


def test_vectors_and_factors_around_one_don_t_decay() -> None:
    decays = {
        name
        for method, options in (("lora", {"use_dora": True}), ("ia3", {}))
        for name, (_, decay) in groups_of(
            get_peft_model(lora().unload(), peft_config_from(method, task_type="CAUSAL_LM", **options)),
            weight_decay=0.1,
        ).items()
        if decay
    }
    assert {name.split(".")[-3] for name in decays} == {"lora_A", "lora_B"}


def test_lora_fa_takes_the_steps_of_peft_s_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peft.optimizers.lorafa, "is_bf16_available", lambda: False)
    ours, theirs = lora(), lora()
    wanted = settings(lora_fa=True, learning_rate=1e-2)
    freeze_first_factors(ours, wanted)
    groups = parameter_groups(ours, wanted, decaying=set())
    optimizer = torch.optim.AdamW(groups, eps=0.0)
    project_gradients(optimizer, ours, wanted)
    peer = create_lorafa_optimizer(theirs, r=2, lora_alpha=8, lr=1e-2)
    peer.param_groups[0]["eps"] = 0.0  # peft adds it before the correction of the bias, torch after it
    draw = torch.Generator().manual_seed(0)
    for _ in range(3):
        for (name, mine), their in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            if ".lora_B." in name:
                mine.grad = torch.randn(mine.shape, generator=draw)
                their.grad = mine.grad.clone()
        optimizer.step()
        peer.step()
    for (name, mine), their in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert mine.requires_grad == (".lora_B." in name)
        torch.testing.assert_close(mine, their, rtol=1e-5, atol=1e-6)


def test_lora_fa_s_step_is_the_one_of_b_nearest_to_the_full_gradient() -> None:
    """min over X of ‖s X A - G‖, by least squares; Adam's step above doesn't depend on s."""
    model, wanted = lora(), settings(lora_fa=True, learning_rate=1.0)
    freeze_first_factors(model, wanted)
    optimizer = torch.optim.SGD(parameter_groups(model, wanted, decaying=set()), lr=1.0)
    project_gradients(optimizer, model, wanted)
    layer = next(module for path, module in model.named_modules() if path.endswith("q_proj"))
    a, b, scaling = layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.scaling["default"]
    full = torch.randn(b.shape[0], a.shape[1], generator=torch.Generator().manual_seed(0))
    b.grad = scaling * full @ a.T
    optimizer.step()
    nearest = torch.linalg.lstsq(scaling * a.detach().T, full.T).solution.T
    torch.testing.assert_close(-b.detach(), nearest, rtol=1e-4, atol=1e-5)
