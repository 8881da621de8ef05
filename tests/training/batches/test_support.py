"""Models that packed batches would get wrong are found, and the reason names what was found."""

import copy

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from tests.training.batches.tiny import MODELS, SHAPE, model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GptOssConfig,
    GraniteConfig,
    Lfm2Config,
    Llama4TextConfig,
    LlamaConfig,
    MambaConfig,
    MixtralConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from manytune.training.batches import packed_training_obstacle

# The installed peft asks transformers for a property that it has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

SMALL = {key: value for key, value in SHAPE.items() if key != "initializer_range"}


def from_config(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_supported_models_have_no_reason(kind, dtype):
    assert packed_training_obstacle(model(kind, dtype)) is None


def test_a_model_with_another_head_scale_is_supported():
    assert packed_training_obstacle(from_config(GraniteConfig(**SMALL, logits_scaling=4.0))) is None


def test_experts_without_balance_loss_are_supported():
    assert packed_training_obstacle(from_config(MixtralConfig(**SMALL, num_local_experts=2))) is None


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (MambaConfig(vocab_size=7, hidden_size=16, num_hidden_layers=2, state_size=4), "conv1d"),
        (Lfm2Config(**SMALL, layer_types=["conv", "full_attention"]), "conv"),
        (MixtralConfig(**SMALL, num_local_experts=2, output_router_logits=True), "output_router_logits"),
        (MixtralConfig(**SMALL, num_local_experts=2, router_jitter_noise=0.1), "router_jitter_noise = 0.1"),
        (GptOssConfig(**SMALL, head_dim=4, num_local_experts=2), "sinks"),
        (Llama4TextConfig(**SMALL, head_dim=4, num_local_experts=2), "chunked_attention"),
        (LlamaConfig(**SMALL, attention_dropout=0.1), "attention_dropout = 0.1"),
        (GPT2Config(vocab_size=7, n_embd=16, n_layer=1, n_head=2), "transformer.drop, p = 0.1"),
    ],
)
def test_what_breaks_exactness_is_named(config, named):
    assert named in packed_training_obstacle(from_config(config))


def test_an_encoder_is_named():
    config = T5Config(vocab_size=7, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    assert packed_training_obstacle(T5ForConditionalGeneration(config)) == "it has an encoder"


def test_dropout_of_an_adapter_is_no_reason():
    adapted = get_peft_model(model("llama"), LoraConfig(lora_dropout=0.5, target_modules=["q_proj"]))
    assert packed_training_obstacle(adapted) is None


def test_virtual_tokens_are_named():
    adapted = get_peft_model(model("llama"), PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))
    assert packed_training_obstacle(adapted) == "adapter 'default' puts virtual tokens before each row"


class Smoothed(nn.Module):
    """Mixes each token with the one before it in the row, under a name that tells nothing."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) + x.roll(1, dims=1)


def test_an_unknown_mixing_of_columns_is_found_by_running_the_model():
    mixed = model("llama")
    mixed.model.layers[0].mlp = Smoothed(mixed.model.layers[0].mlp)
    assert "two short sequences give a loss of" in packed_training_obstacle(mixed)


def test_looking_leaves_the_model_as_it_was():
    llama = model("llama")
    llama.model.layers[1].eval()
    before = copy.deepcopy(llama)
    packed_training_obstacle(llama)
    assert [m.training for m in llama.modules()] == [m.training for m in before.modules()]
    assert llama.config._attn_implementation == before.config._attn_implementation
    assert all(parameter.grad is None for parameter in llama.parameters())


def test_a_module_without_a_transformers_model_is_refused():
    with pytest.raises(
        TypeError, match="expected a transformers PreTrainedModel or a wrapper of one, got Linear"
    ):
        packed_training_obstacle(nn.Linear(2, 2))
