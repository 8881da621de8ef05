"""Sizes from a config, compared with the models that transformers builds from it."""

import pytest
import torch
from tests.planner.configs import config_of, llama
from torch import nn
from transformers import AutoModelForCausalLM

from manytune.errors import RecipeError
from manytune.planner.architecture import architecture_of
from manytune.planner.families import FAMILIES
from manytune.training.speed.required_flops import ModelSize


def built(config: object) -> nn.Module:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_the_parameters_are_those_of_the_model_that_transformers_builds(model_type: str, tied: bool) -> None:
    config = config_of(model_type, tie_word_embeddings=tied)
    found = architecture_of(config.to_dict(), where="config.json")
    model = built(config)
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    linear = {
        name.removeprefix("model.layers.0.").removeprefix("transformer.h.0."): module
        for name, module in model.named_modules()
        if ".0." in name and isinstance(module, nn.Linear)
    }
    if model_type != "gpt2":  # whose layers are of another class
        for matrix in found.matrices:
            (own,) = [module for name, module in linear.items() if name.endswith(matrix.name)]
            assert (own.in_features, own.out_features) == (matrix.inputs, matrix.outputs), matrix
            assert (own.bias is not None) == matrix.bias


@pytest.mark.parametrize("model_type", [name for name, family in FAMILIES.items() if not family.experts_keys])
def test_the_sizes_of_the_flops_formula_are_those_of_the_model(model_type: str) -> None:
    config = config_of(model_type)
    found, counted = architecture_of(config.to_dict(), where="config.json"), ModelSize.of(built(config))
    assert counted is not None
    assert found.used_layer_weights == counted.layer_weights
    assert found.head_weights == counted.head_weights
    assert found.attention_width == counted.attention_width


def test_a_token_of_a_mixture_is_multiplied_with_the_experts_that_it_uses() -> None:
    found = architecture_of(config_of("mixtral").to_dict(), where="config.json")
    expert = 3 * 32 * 48
    attention = 32 * 32 * 2 + 32 * 16 * 2
    assert found.layer_weights == 3 * (attention + 4 * expert)
    assert found.used_layer_weights == 3 * (attention + 2 * expert)


def test_keys_and_values_of_a_token() -> None:
    found = architecture_of(llama(), where="model")
    assert found.kv_numbers == 2 * 4 * 2 * 16  # K and V, layers, key heads, head size


def test_published_sizes() -> None:
    """Llama 3 (Grattafiori et al., 2024, table 3) and the 8.03 and 70.6 billion parameters of their model cards."""
    eight = llama(
        hidden_size=4096,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        intermediate_size=14336,
        vocab_size=128256,
    )
    seventy = {**eight, "hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64}
    seventy["intermediate_size"] = 28672
    assert architecture_of(eight, where="").parameters == 8_030_261_248
    assert architecture_of(seventy, where="").parameters == pytest.approx(70.6e9, rel=1e-3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (llama(model_type="lama"), r"model_type: llama, .*found 'lama' \(text\); did you mean 'llama'\?"),
        (llama(model_type=None), "found nothing"),
        ({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}, "plan for its text_config"),
        (llama(hidden_size="64"), "hidden_size should be a whole number from 1"),
        (llama(num_hidden_layers=0), r"num_hidden_layers .*found 0"),
        (llama(vocab_size=True), "vocab_size"),
        (llama(vocab_size=1 << 25), "vocab_size should be a whole number from 1 to 16,777,216"),
        (llama(num_attention_heads=6, num_key_value_heads=4), "6 heads of queries can't share 4 heads"),
        ({key: value for key, value in llama().items() if key != "intermediate_size"}, "intermediate_size"),
        (llama(model_type="mistral", num_key_value_heads=None), "num_key_value_heads"),
        (llama(hiden_size=64), r"hiden_size: planning knows no such key; did you mean 'hidden_size'\?"),
        ({**config_of("qwen3_moe").to_dict(), "mlp_only_layers": [1]}, "layers to be of one kind"),
    ],
)
def test_a_config_that_cannot_be_planned_with_is_refused_in_a_sentence(
    config: dict[str, object], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        architecture_of(config, where="model", strict="hiden_size" in config)


def test_keys_that_planning_does_not_know_are_named() -> None:
    found = architecture_of(llama(kv_lora_rank=512, rope_theta=1e6), where="config.json")
    assert found.unread == ("kv_lora_rank",)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_no_key_of_a_config_that_transformers_writes_is_unknown(model_type: str) -> None:
    assert architecture_of(config_of(model_type).to_dict(), where="config.json").unread == ()
