"""P-tuning: virtual tokens computed by a small network. Its parity with HF PEFT is in test_soft_prompts.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.methods import prompts
from tests.methods.tiny_models import LLAMA

import manytune
from manytune.errors import ConfigError

IDS = LLAMA.inputs()["input_ids"]


def attached(**options: Any) -> Any:
    torch.manual_seed(1)
    config = manytune.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, **options)
    return manytune.get_peft_model(prompts.livelier(LLAMA.build()), config)


def test_the_mlp_is_three_layers_with_relu_between() -> None:
    encoder = attached(encoder_hidden_size=6).prompt_encoder["default"]
    rows = encoder.embedding.weight
    for index in (0, 2, 4):
        rows = rows @ encoder.mlp_head[index].weight.T + encoder.mlp_head[index].bias
        rows = rows if index == 4 else rows.clamp(min=0)
    torch.testing.assert_close(encoder(), rows)


def test_the_hidden_size_is_by_default_that_of_an_embedding() -> None:
    model = attached()
    assert model.peft_config["default"].encoder_hidden_size == 32
    assert model.prompt_encoder["default"].mlp_head[0].weight.shape == (32, 32)


def test_a_checkpoint_holds_the_computed_tokens_without_dropout() -> None:
    model = attached(encoder_reparameterization_type="LSTM", encoder_dropout=0.5).train()
    first, second = (model.tuner.state("default")["prompt_embeddings"] for _ in range(2))
    assert torch.equal(first, second)
    assert model.prompt_encoder["default"].training


@pytest.mark.parametrize("name", ["PromptEncoderConfig", "PrefixTuningConfig"])
def test_training_on_from_a_file_says_that_the_network_is_gone(name: str, tmp_path: Path) -> None:
    method = "p-tuning-mlp" if name == "PromptEncoderConfig" else "prefix-tuning-projected"
    mine, _ = prompts.both(method, prompts.livelier(LLAMA.build()), "CAUSAL_LM")
    expected = prompts.logits(mine, input_ids=IDS)
    mine.save_pretrained(tmp_path)
    base = prompts.livelier(LLAMA.build()).double()
    with pytest.warns(manytune.PeftWarning, match="train directly from here on"):
        loaded = manytune.PeftModel.from_pretrained(base, tmp_path, is_trainable=True)
    torch.testing.assert_close(prompts.logits(loaded, input_ids=IDS), expected, rtol=1e-12, atol=1e-12)
    assert list(prompts.training(loaded)) == ["prompt_encoder.default.embedding.weight"]
    loaded(input_ids=IDS, labels=IDS).loss.backward()
    assert loaded.get_parameter("prompt_encoder.default.embedding.weight").grad is not None


@pytest.mark.parametrize("option", [{"encoder_num_layers": 3}, {"encoder_dropout": 0.1}])
def test_an_option_that_the_mlp_does_not_have_is_named(option: dict[str, Any]) -> None:
    with pytest.warns(manytune.PeftWarning, match=f"For MLP, the argument `{next(iter(option))}` is ignored"):
        attached(**option)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder_reparameterization_type": "CNN"}, "one of MLP, LSTM, found 'CNN'"),
        ({"encoder_dropout": 1.5}, "encoder_dropout is a probability below 1, found 1.5"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(manytune.ConfigError, match=message):
        attached(**options)


def test_more_layers_than_any_network_has_are_refused_before_they_are_made() -> None:
    with pytest.raises(ConfigError, match="encoder_num_layers is at most 100, found 1,000,000"):
        manytune.PromptEncoderConfig(num_virtual_tokens=4, encoder_num_layers=1_000_000)
