"""Prefix tuning: keys and values in front of each layer's. Its parity with HF PEFT is in test_soft_prompts.py."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.methods import prompts
from tests.methods.tiny_models import GPT2, LLAMA, T5, VOCABULARY
from tests.methods.tiny_moe import DEEPSEEK
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DynamicCache,
    Gemma2Config,
    Gemma2ForCausalLM,
    JambaConfig,
    JambaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    RwkvConfig,
    RwkvForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
)

import manytune

IDS = LLAMA.inputs()["input_ids"]
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


def attached(base: nn.Module | None = None, task_type: str = "CAUSAL_LM", **options: Any) -> Any:
    torch.manual_seed(1)
    config = manytune.PrefixTuningConfig(**{"task_type": task_type, "num_virtual_tokens": 4, **options})
    return manytune.get_peft_model(base or prompts.livelier(LLAMA.build()), config)


def mistral() -> nn.Module:
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=5))


def gemma2() -> nn.Module:
    torch.manual_seed(0)
    config = Gemma2Config(
        **{**SIZES, "head_dim": 16}, sliding_window=5, layer_types=["sliding_attention", "full_attention"]
    )
    return Gemma2ForCausalLM(config)


@pytest.mark.parametrize("build", [mistral, gemma2])
def test_a_sliding_window_slides_over_the_prefix_as_in_peft(build: Any) -> None:
    mine, oracle = prompts.both("prefix-tuning", prompts.livelier(build()), "CAUSAL_LM")
    prompts.assert_same(mine, oracle, {"input_ids": IDS, "labels": IDS})
    expected = IDS
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        # Not its generate(), which doesn't know what transformers calls a cache from 5.24 on.
        for _ in range(8):
            likeliest = oracle(input_ids=expected).logits[:, -1].argmax(-1, keepdim=True)
            expected = torch.cat((expected, likeliest), 1)
    options = {"input_ids": IDS, "max_new_tokens": 8, "do_sample": False}
    assert torch.equal(mine.generate(**options), expected)
    assert torch.equal(mine.generate(**options, use_cache=False), expected)


def test_the_output_is_the_bases_with_a_cache_filled_by_hand() -> None:
    model = attached()
    flat = model.prompt_encoder["default"].embedding.weight.detach()  # (4, 2 layers * 2 * 2 heads * 8)
    cache = DynamicCache()
    for layer in range(2):
        keys, values = (
            flat[:, 16 * part : 16 * (part + 1)].reshape(4, 2, 8).transpose(0, 1).expand(3, -1, -1, -1)
            for part in (2 * layer, 2 * layer + 1)
        )
        cache.update(keys, values, layer)
    expected = prompts.logits(model.get_base_model(), input_ids=IDS, past_key_values=cache)
    assert torch.equal(prompts.logits(model, input_ids=IDS), expected)


def test_grouped_queries_give_the_heads_of_the_keys() -> None:
    for options in ({}, {"token_dim": 32, "num_attention_heads": 4}):
        config = attached(**options).peft_config["default"]
        assert (config.num_attention_heads, config.token_dim, config.encoder_hidden_size) == (2, 16, 16)


def test_heads_of_another_size_than_the_models_quotient_are_the_models_own() -> None:
    config = T5Config(vocab_size=VOCABULARY, d_model=32, d_ff=48, d_kv=16, num_layers=2, num_heads=4)
    torch.manual_seed(0)
    base = T5ForConditionalGeneration(config)
    base.config.decoder_start_token_id = 0
    model = attached(base, "SEQ_2_SEQ_LM")
    assert model.peft_config["default"].token_dim == 64
    assert model(input_ids=IDS, labels=IDS).loss.isfinite()


def test_zeros_are_zero_keys_and_values() -> None:
    for projected in (False, True):
        model = attached(init_weights="zero", prefix_projection=projected)
        assert not model.tuner.state("default")["prompt_embeddings"].any()


def test_gradient_checkpointing_is_refused_before_and_after() -> None:
    base: Any = prompts.livelier(GPT2.build())
    base.activation_checkpointing_enable()
    with pytest.raises(ValueError, match="PREFIX_TUNING does not work with gradient checkpointing"):
        attached(base)
    base.activation_checkpointing_disable()
    model = attached(base).train()
    base.activation_checkpointing_enable()
    with pytest.raises(ValueError, match="PREFIX_TUNING does not work with gradient checkpointing"):
        model(input_ids=IDS, labels=IDS)


def test_a_decoder_mask_is_widened() -> None:
    model = attached(prompts.livelier(T5.build()), "SEQ_2_SEQ_LM")
    inputs = T5.inputs()
    mask = torch.ones_like(inputs["labels"])
    found = prompts.logits(model, **inputs, decoder_attention_mask=mask)
    torch.testing.assert_close(found, prompts.logits(model, **inputs))


def test_a_caller_without_a_cache_gets_none() -> None:
    output = attached()(input_ids=IDS, use_cache=False)
    assert set(output) == {"logits"} and output.past_key_values is None
    assert attached()(input_ids=IDS).past_key_values.get_seq_length() == 4 + 9


def test_a_model_without_past_key_values_is_refused() -> None:
    base = DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=VOCABULARY, dim=32, hidden_dim=48, n_layers=2, n_heads=4)
    )
    with pytest.raises(manytune.ConfigError, match="does not support past key values"):
        attached(base, "SEQ_CLS")
    assert all(parameter.requires_grad for parameter in base.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init_weights": "ones"}, "init_weights should be None or 'zero', found 'ones'"),
        ({"token_dim": 24}, "token_dim=24: LlamaForCausalLM has 2 x 8 for keys"),
        ({"num_attention_heads": 3}, "num_attention_heads=3: LlamaForCausalLM has 2 x 8 for keys"),
        ({"num_layers": 1}, "num_layers=1: the model has 2 layers with a prefix each"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(manytune.ConfigError, match=message):
        attached(**options)


# -- what a prefix can't do is said at once


@pytest.mark.parametrize(
    "enable", ["activation_checkpointing_enable", "gradient_checkpointing_enable"], ids=lambda name: name[:10]
)
@pytest.mark.parametrize("combined", [False, True], ids=["", "combined"])
def test_turning_checkpointing_on_is_refused_when_it_is_asked_for(enable: str, combined: bool) -> None:
    """HF PEFT says so at the first step."""
    config: Any = manytune.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    if combined:
        config = manytune.CombinedConfig(task_type="CAUSAL_LM", weights=manytune.LoraConfig(), prompt=config)
    model = manytune.get_peft_model(LLAMA.build(), config)
    with pytest.raises(manytune.ConfigError, match="PREFIX_TUNING does not work with gradient checkpointing"):
        getattr(model, enable)()
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    model.train()(input_ids=IDS, labels=IDS).loss.backward()


def test_the_trainer_is_refused_checkpointing_before_its_first_step(tmp_path: Path) -> None:
    model = attached()
    arguments = TrainingArguments(tmp_path, activation_checkpointing=True, report_to=[], use_cpu=True)
    trainer = Trainer(model, arguments, train_dataset=[{"input_ids": IDS[0], "labels": IDS[0]}])
    with pytest.raises(
        manytune.ConfigError, match="gradient_checkpointing=False in a recipe or in TrainingArguments"
    ):
        trainer.train()
    assert trainer.state.global_step == 0


def _jamba() -> nn.Module:
    sizes = {**SIZES, "mamba_d_state": 4, "use_mamba_kernels": False, "num_experts": 2}
    return JambaForCausalLM(
        JambaConfig(**sizes, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=5)
    )


WITHOUT: dict[str, tuple[Any, str, str]] = {
    "state space": (
        lambda: MambaForCausalLM(
            MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4)
        ),
        "CAUSAL_LM",
        "(MambaForCausalLM does not support past key values|found a layer with LinearAttentionLayer)",
    ),
    "recurrent": (
        lambda: RwkvForCausalLM(
            RwkvConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, attention_hidden_size=32)
        ),
        "CAUSAL_LM",
        "RwkvForCausalLM does not support past key values",
    ),
    "encoder": (
        lambda: AlbertForSequenceClassification(
            AlbertConfig(
                vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, embedding_size=16
            )
        ),
        "SEQ_CLS",
        "AlbertForSequenceClassification does not support past key values",
    ),
    "older decoder": (
        lambda: OpenAIGPTLMHeadModel(OpenAIGPTConfig(vocab_size=64, n_embd=32, n_layer=2, n_head=4)),
        "CAUSAL_LM",
        "OpenAIGPTLMHeadModel does not support past key values",
    ),
    "hybrid": (
        _jamba,
        "CAUSAL_LM",
        "needs keys and values in each layer, found a layer with LinearAttentionLayer",
    ),
    "compressed": (DEEPSEEK.build, "CAUSAL_LM", "DeepseekV3ForCausalLM has kv_lora_rank=8"),
}


@pytest.mark.parametrize("kind", WITHOUT)
def test_a_model_whose_cache_takes_no_prefix_is_refused_when_it_is_attached(kind: str) -> None:
    """In HF PEFT these end in an error at the first step, or (Mamba 2) run without the prefix."""
    build, task, message = WITHOUT[kind]
    base = build()
    with pytest.raises(manytune.ConfigError, match=rf"{message}.*Prompt tuning and P-tuning need none\."):
        attached(base, task)
    assert all(parameter.requires_grad for parameter in base.parameters())


@pytest.mark.parametrize("kind", [kind for kind in WITHOUT if kind not in ("hybrid",)])
def test_prompt_tuning_needs_no_cache(kind: str) -> None:
    build, task, _ = WITHOUT[kind]
    torch.manual_seed(0)
    config = manytune.PromptTuningConfig(task_type=task, num_virtual_tokens=2)
    model = manytune.get_peft_model(build(), config).eval()
    with torch.no_grad():
        model.prompt_encoder["default"].embedding.weight.fill_(3.0)
        prompted = model(input_ids=IDS).logits
        with model.disable_adapter():
            plain = model(input_ids=IDS).logits
    shared = prompted[:, -plain.shape[1] :] if plain.dim() == 3 else prompted
    assert (shared - plain).abs().max() > 1e-6
