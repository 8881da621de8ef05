"""Adapters of every method over tiny models, in memory as the store hands them out, and attached for comparison."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from tests.built_once import built_once
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from manytune.errors import PeftWarning
from manytune.methods.adalora.config import AdaLoraConfig
from manytune.methods.bottleneck.model import BottleneckConfig
from manytune.methods.checkpoint.format import get_state
from manytune.methods.combined import CombinedConfig
from manytune.methods.config import PeftConfig
from manytune.methods.ia3.model import IA3Config
from manytune.methods.lora.config import LoraConfig
from manytune.methods.p_tuning.model import PromptEncoderConfig
from manytune.methods.prefix_tuning.model import PrefixTuningConfig
from manytune.methods.prompt_tuning.model import PromptTuningConfig
from manytune.methods.selective import SelectiveConfig
from manytune.methods.trainable_tokens import TrainableTokensConfig
from manytune.methods.vera.model import VeraConfig
from manytune.model.attach import get_peft_model

TASK = "CAUSAL_LM"
VOCABULARY = 48
END = 1


#: Sizes of a tiny model of Llama's kind.
LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": END,
    "pad_token_id": 0,
}


@built_once
def llama(*, spread=0.2):
    """Two layers; weights of a size (`spread`) that gives varied answers without amplifying rounding errors."""
    torch.manual_seed(3)
    return LlamaForCausalLM(LlamaConfig(**LLAMA, initializer_range=spread)).eval()


@built_once
def gpt2(*, spread=0.2):
    """The same, with biases, learned positions and weights stored transposed."""
    torch.manual_seed(4)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=64,
        initializer_range=spread,
        bos_token_id=None,
        eos_token_id=END,
    )
    return GPT2LMHeadModel(config).eval()


@dataclass(frozen=True)
class InMemory:
    """What the engine takes."""

    digest: str
    config: PeftConfig
    tensors: Mapping[str, Tensor]


def of_all_tokens(top):
    """The log probabilities of every token of the vocabulary, given in any order with their tokens."""
    values = dict(top)
    return torch.tensor([values[token] for token in range(VOCABULARY)])


def llama_configs():
    """A fresh configuration of each kind, by name."""
    every = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return {
        "lora q,v": LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type=TASK),
        "lora q,v again": LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type=TASK),
        "lora r=3": LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "v_proj"], task_type=TASK),
        "lora all": LoraConfig(r=8, target_modules=every, task_type=TASK),
        "lora mixed ranks": LoraConfig(
            r=2,
            target_modules=["k_proj", "down_proj"],
            rank_pattern={r"layers\.1\.mlp\.down_proj": 6},
            alpha_pattern={"k_proj": 16},
            use_rslora=True,
            task_type=TASK,
        ),
        "lora one layer": LoraConfig(
            r=4, target_modules=["q_proj", "up_proj"], layers_to_transform=[1], task_type=TASK
        ),
        "lora bias": LoraConfig(r=4, target_modules=["o_proj", "v_proj"], lora_bias=True, task_type=TASK),
        "dora": LoraConfig(r=4, target_modules=["q_proj", "down_proj"], use_dora=True, task_type=TASK),
        "lora head": LoraConfig(r=3, target_modules=["lm_head", "q_proj"], task_type=TASK),
        "lora embeddings": LoraConfig(r=3, target_modules=["embed_tokens", "v_proj"], task_type=TASK),
        "trained head": LoraConfig(
            r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type=TASK
        ),
        "trained table": LoraConfig(
            r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens"], task_type=TASK
        ),
        "lora + tokens": LoraConfig(
            r=2, target_modules=["q_proj"], trainable_token_indices=[5, 9, 2], task_type=TASK
        ),
        "tokens": TrainableTokensConfig(token_indices=[7, 3, 30, 31], task_type=TASK),
        "adalora": AdaLoraConfig(
            init_r=4, target_r=2, total_step=10, target_modules=["q_proj", "up_proj"], task_type=TASK
        ),
        "vera": VeraConfig(r=6, target_modules=["q_proj", "o_proj"], task_type=TASK),
        "norms": SelectiveConfig(parameters="layernorm", task_type=TASK),
        "ia3": IA3Config(
            target_modules=["k_proj", "v_proj", "down_proj"],
            feedforward_modules=["down_proj"],
            task_type=TASK,
        ),
        "bottleneck": BottleneckConfig(bottleneck_size=6, non_linearity="gelu", task_type=TASK),
        "bottleneck parallel": BottleneckConfig(
            style="parallel", bottleneck_size=5, scaling=2.0, task_type=TASK
        ),
        "prompt tuning": PromptTuningConfig(num_virtual_tokens=3, task_type=TASK),
        "p-tuning": PromptEncoderConfig(num_virtual_tokens=2, encoder_hidden_size=8, task_type=TASK),
        "prefix tuning": PrefixTuningConfig(num_virtual_tokens=4, task_type=TASK),
        "lora + prefix": CombinedConfig(
            weights=LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
            prompt=PrefixTuningConfig(num_virtual_tokens=2),
            task_type=TASK,
        ),
        "ia3 + prompt": CombinedConfig(
            weights=IA3Config(target_modules=["k_proj", "v_proj"], feedforward_modules=[]),
            prompt=PromptTuningConfig(num_virtual_tokens=2),
            task_type=TASK,
        ),
    }


def gpt2_configs():
    return {
        "lora": LoraConfig(r=4, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True, task_type=TASK),
        "dora": LoraConfig(
            r=4, target_modules=["c_attn"], fan_in_fan_out=True, use_dora=True, task_type=TASK
        ),
        "ia3": IA3Config(
            target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"], task_type=TASK
        ),
        "prefix tuning": PrefixTuningConfig(num_virtual_tokens=4, task_type=TASK),
        "bitfit": SelectiveConfig(parameters="bias", task_type=TASK),
        "tokens": TrainableTokensConfig(token_indices=[7, 3, 30], task_type=TASK),
        "lora positions": LoraConfig(r=2, target_modules=["wpe", "wte"], task_type=TASK),
    }


def configs_for(model):
    return gpt2_configs() if isinstance(model, GPT2LMHeadModel) else llama_configs()


def attached(model, config, *, seed):
    """The model with one adapter of random weights, strong enough to change every answer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PeftWarning)  # a bias in B can't be merged here; nothing is
        adapted = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    fresh = ("lora_A", "lora_B", "lora_embedding", "bottleneck_", "prompt_encoder")
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad and "ranknum" not in name:
            spread = 0.2 * torch.randn(parameter.shape, generator=generator)
            parameter.data.copy_(spread if any(mark in name for mark in fresh) else parameter.data + spread)
    return adapted.eval()


def in_memory(adapted):
    """An attached adapter as the store would hand it out."""
    tensors = {name: tensor.detach().clone() for name, tensor in get_state(adapted.tuner, "default").items()}
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return InMemory(digest.hexdigest(), adapted.peft_config["default"], tensors)
