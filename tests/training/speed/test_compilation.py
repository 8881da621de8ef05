"""`training.compile`: the same training, or an error that says why not."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from tests.store.tiny import tiny_model
from tests.training.tiny_run import as_rows, lora, sequences, settings
from torch import nn

from manytune.errors import RunError
from manytune.methods.registry import peft_config_from
from manytune.model.attach import get_peft_model
from manytune.training.loop.train import train_model


def one_layer() -> nn.Module:
    """With an adapter on some products of it; each layer takes the compiler as long. Other tests compile more."""
    base = tiny_model()
    del base.model.layers[1]
    base.config.num_hidden_layers = 1
    torch.manual_seed(0)
    options = {"r": 2, "lora_dropout": 0.1, "target_modules": ["q_proj", "down_proj"]}
    return get_peft_model(base, peft_config_from("lora", task_type="CAUSAL_LM", **options))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's compiler trips over deprecations of its own
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_layers_train_to_the_same_weights() -> None:
    rows = sequences(9)
    plain, compiled = one_layer(), one_layer()
    expected = train_model(plain, as_rows(rows, rows[:3]), settings())
    result = train_model(compiled, as_rows(rows, rows[:3]), settings(compile=True))
    assert expected.compile_seconds is None and result.compile_seconds is not None
    assert result.compile_seconds < result.seconds
    assert result.step_seconds < result.compile_seconds  # compiling is over before the steps begin
    for (name, ours), (_, theirs) in zip(compiled.named_parameters(), plain.named_parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=5e-5), name  # as in the textbook's loop
    assert all(module._compiled_call_impl is None for module in compiled.modules())


def test_a_compiler_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise torch._dynamo.exc.TorchDynamoException("there is no C++ compiler here")

    def compile_by_failing(layer: nn.Module, **_: Any) -> None:
        layer._compiled_call_impl = fail

    monkeypatch.setattr(nn.Module, "compile", compile_by_failing)
    with pytest.raises(RunError, match=r"there is no C\+\+ compiler here.*Or set training.compile to false"):
        train_model(lora(), as_rows(sequences(3)), settings(compile=True))


def test_compiled_layers_that_compute_something_else_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_wrongly(layer: nn.Module, **_: Any) -> None:
        right = layer._call_impl
        layer._compiled_call_impl = lambda *args, **kwargs: right(*args, **kwargs) + 0.1  # type: ignore[operator]

    monkeypatch.setattr(nn.Module, "compile", compile_wrongly)
    model = lora()
    with pytest.raises(RunError, match="so they compute something else"):
        train_model(model, as_rows(sequences(3)), settings(compile=True))
    assert all(module._compiled_call_impl is None for module in model.modules())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_model_whose_layers_are_unknown_is_not_compiled_in_silence() -> None:
    model = lora()
    model.get_base_model()._no_split_modules = []
    with pytest.raises(RunError, match="doesn't say which of its modules are its layers"):
        train_model(model, as_rows(sequences(3)), settings(compile=True))
