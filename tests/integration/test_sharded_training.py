"""Two processes train as one does: DistributedDataParallel, FSDP2, and transformers' Trainer with either."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.integration.sharded_runs import (
    HEADS,
    METHODS,
    PROCESSES,
    WRAPPED,
    adapted,
    base,
    chunked,
    evaluated,
    main,
    train,
)
from tests.training.distributed.together import together

from manytune import get_peft_model_state_dict

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory in which two processes left what they found."""
    directory = tmp_path_factory.mktemp("sharded")
    together(PROCESSES, main, directory)
    return directory


@pytest.fixture(scope="module")
def found(runs: Path) -> dict[str, dict[str, Any]]:
    findings: dict[str, dict[str, Any]] = torch.load(runs / "found.pt", weights_only=True)
    return findings


@cache
def alone(name: str) -> tuple[list[float], dict[str, torch.Tensor], float]:
    """A method trained in one process: its losses, its tensors, and the loss of rows that it hasn't seen."""
    steps, config = METHODS[name]
    model = adapted(config())
    _, _, losses = train(model, "alone", steps, None)
    unseen = evaluated(model, None)
    return losses, get_peft_model_state_dict(model), unseen


@pytest.mark.parametrize(("name", "mode"), WRAPPED)
def test_two_processes_train_what_one_does(name: str, mode: str, runs: Path, found: Any) -> None:
    losses, tensors, unseen = alone(name)
    mine = found[f"{name} {mode}"]
    assert "error" not in mine, mine["error"]
    assert mine["losses"] == pytest.approx(losses, abs=1e-6)
    written = load_file(runs / f"{name} {mode}" / "adapter_model.safetensors")
    assert written.keys() == tensors.keys()
    for key, tensor in tensors.items():
        torch.testing.assert_close(written[key], tensor.contiguous(), atol=1e-5, rtol=0, msg=key)
    assert mine["trained"] == pytest.approx(unseen, abs=1e-6)
    assert mine["by_state_dict"]
    if mode == "fsdp":
        assert mine["base_released"]


@pytest.mark.parametrize(("name", "mode"), WRAPPED)
def test_adapters_load_and_switch_in_a_wrapped_model(name: str, mode: str, found: Any) -> None:
    mine = found[f"{name} {mode}"]
    if "set" in mine:
        assert mine["set"]
        assert abs(mine["changed"] - mine["trained"]) > 1e-9
    assert mine["restored"] == mine["enabled"] == mine["used"] == mine["trained"]
    assert mine["disabled"] == mine["by_name"] == pytest.approx(evaluated(base(), None), abs=1e-6)


@pytest.mark.parametrize("head", HEADS)
def test_the_loss_in_chunks_is_that_of_one_process(head: str, found: Any) -> None:
    expected = chunked(head, "alone", None)
    for mode in ("ddp", "fsdp", "tail"):
        mine = found[f"chunked {head} {mode}"]
        assert "error" not in mine, mine["error"]
        assert mine["losses"] == pytest.approx(expected["losses"], abs=1e-9)
        assert mine["gradients"].keys() == expected["gradients"].keys()
        for name, gradient in expected["gradients"].items():
            torch.testing.assert_close(mine["gradients"][name], gradient, atol=1e-9, rtol=1e-9, msg=name)


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_a_trainers_checkpoints_hold_the_adapter_and_resume(mode: str, runs: Path, found: Any) -> None:
    theirs, mine = found[f"trainer peft {mode}"], found[f"trainer manytune {mode}"]
    assert "error" not in mine, mine["error"]
    assert mine["losses"] == pytest.approx(theirs["losses"], abs=1e-5)
    assert mine["files"] == theirs["files"]
    assert mine["resumed"] == pytest.approx(mine["losses"], abs=1e-6)
    assert mine["best"] == pytest.approx(mine["losses"][3], abs=1e-6)
    last = runs / f"trainer manytune {mode}" / "last"
    weights = load_file(last / "adapter_model.safetensors")
    expected = load_file(runs / f"trainer peft {mode}" / "last" / "adapter_model.safetensors")
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, atol=1e-5, rtol=1e-5)
    if mode == "fsdp":
        model = torch.load(last / "pytorch_model_fsdp.bin", weights_only=True)
        assert all("lora_" in name for name in model)


def test_each_layer_is_a_unit_with_a_trainer(found: Any) -> None:
    assert found["trainer manytune fsdp"]["units"] >= 3


def test_what_cannot_be_done_to_sharded_weights_is_said(found: Any) -> None:
    said = found["refused"]
    assert "error" not in said, said["error"]
    for name, message in said.items():
        expected = "module.x" if name == "state_dict of a wrapper" else "sharded"
        assert expected in message, (name, message)
