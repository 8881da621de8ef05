"""Tiny encoder-decoders and adapters of every method over them."""

from __future__ import annotations

import torch
from tests.engine.adapters import END, VOCABULARY
from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration

from manytune.methods.adalora.config import AdaLoraConfig
from manytune.methods.bottleneck.model import BottleneckConfig
from manytune.methods.combined import CombinedConfig
from manytune.methods.ia3.model import IA3Config
from manytune.methods.lora.config import LoraConfig
from manytune.methods.p_tuning.model import PromptEncoderConfig
from manytune.methods.prefix_tuning.model import PrefixTuningConfig
from manytune.methods.prompt_tuning.model import PromptTuningConfig
from manytune.methods.selective import SelectiveConfig
from manytune.methods.trainable_tokens import TrainableTokensConfig
from manytune.methods.vera.model import VeraConfig

TASK = "SEQ_2_SEQ_LM"


def t5(*, spread=0.3, **options):
    """T5 as first published: a plain feed-forward, the head tied to the embeddings."""
    torch.manual_seed(6)
    config = T5Config(
        **{
            "vocab_size": VOCABULARY,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": 2,
            "num_heads": 4,
            "relative_attention_num_buckets": 8,
            "relative_attention_max_distance": 16,
            "eos_token_id": END,
            "pad_token_id": 0,
            "decoder_start_token_id": 0,
            **options,
        }
    )
    return varied(T5ForConditionalGeneration(config).eval(), spread=spread)


def flan_t5():
    """T5 1.1's and FLAN-T5's shape: gated, and with a head of its own."""
    return t5(feed_forward_proj="gated-gelu", tie_word_embeddings=False, spread=0.15)


def bart(**options):
    """Learned positions, biases, a forced beginning and a forced end."""
    torch.manual_seed(7)
    config = BartConfig(
        **{
            "vocab_size": VOCABULARY,
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 40,
            "max_position_embeddings": 40,
            "scale_embedding": True,
            "bos_token_id": 2,
            "eos_token_id": END,
            "pad_token_id": 0,
            "decoder_start_token_id": END,
            "forced_eos_token_id": END,
            **options,
        }
    )
    model = varied(BartForConditionalGeneration(config).eval(), spread=0.35)
    model.generation_config.forced_bos_token_id = 2
    return model


def varied(model, *, spread):
    """Weights of a size that gives varied answers without amplifying rounding errors."""
    generator = torch.Generator().manual_seed(8)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.copy_(spread * torch.randn(parameter.shape, generator=generator))
    return model


def t5_configs(model):
    wi = "wi_0" if model.config.is_gated_act else "wi"
    return {
        "lora q,v": LoraConfig(r=4, target_modules=["q", "v"], task_type=TASK),
        "lora again": LoraConfig(r=3, target_modules=["q", "v"], task_type=TASK),
        "lora all": LoraConfig(r=4, target_modules=["q", "k", "v", "o", wi, "wo"], task_type=TASK),
        "lora encoder": LoraConfig(r=4, target_modules=r"encoder.*\.(q|v|wo)", task_type=TASK),
        "lora cross": LoraConfig(r=2, target_modules=r".*EncDecAttention\.(q|k|v)", task_type=TASK),
        "dora": LoraConfig(r=4, target_modules=["q", "wo"], use_dora=True, task_type=TASK),
        "trained head": LoraConfig(r=2, target_modules=["q"], modules_to_save=["lm_head"], task_type=TASK),
        "ia3": IA3Config(target_modules=["k", "v", "wo"], feedforward_modules=["wo"], task_type=TASK),
        "adalora": AdaLoraConfig(
            init_r=4, target_r=2, total_step=10, target_modules=["q", "wo"], task_type=TASK
        ),
        "vera": VeraConfig(r=6, target_modules=["q", "o"], task_type=TASK),
        "norms": SelectiveConfig(parameters="layernorm", task_type=TASK),
        "bottleneck": BottleneckConfig(bottleneck_size=6, non_linearity="gelu", task_type=TASK),
        "parallel": BottleneckConfig(style="parallel", bottleneck_size=5, scaling=2.0, task_type=TASK),
        "tokens": TrainableTokensConfig(token_indices=[7, 3, 30, 31], task_type=TASK),
        **soft_prompts("q", "v"),
    }


def bart_configs():
    return {
        "lora": LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type=TASK),
        "lora all": LoraConfig(
            r=4, target_modules=["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"], task_type=TASK
        ),
        "ia3": IA3Config(
            target_modules=["k_proj", "v_proj", "fc2"], feedforward_modules=["fc2"], task_type=TASK
        ),
        "bitfit": SelectiveConfig(parameters="bias", task_type=TASK),
        "tokens": TrainableTokensConfig(token_indices=[7, 3, 30], task_type=TASK),
        "bottleneck": BottleneckConfig(bottleneck_size=6, task_type=TASK),
        **soft_prompts("q_proj", "v_proj"),
    }


def soft_prompts(*targets):
    return {
        "prompt tuning": PromptTuningConfig(num_virtual_tokens=3, task_type=TASK),
        "p-tuning": PromptEncoderConfig(num_virtual_tokens=2, encoder_hidden_size=8, task_type=TASK),
        "prefix tuning": PrefixTuningConfig(num_virtual_tokens=4, task_type=TASK),
        "lora + prefix": CombinedConfig(
            weights=LoraConfig(r=4, target_modules=list(targets)),
            prompt=PrefixTuningConfig(num_virtual_tokens=2),
            task_type=TASK,
        ),
    }


# What differs in a gated T5 with a head of its own.
_IN_FLAN_T5 = (
    "lora all",
    "dora",
    "trained head",
    "ia3",
    "parallel",
    "tokens",
    "prompt tuning",
    "lora + prefix",
)


def configs_for(model):
    if not isinstance(model, T5ForConditionalGeneration):
        return bart_configs()
    found = t5_configs(model)
    return {name: found[name] for name in _IN_FLAN_T5} if model.config.is_gated_act else found


BASES = {"t5": t5, "flan-t5": flan_t5, "bart": bart}
