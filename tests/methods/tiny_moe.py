"""Mixtures of experts with two layers, whose experts transformers keeps in parameters of three dimensions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

_COMMON: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "num_experts_per_tok": 2,
}


@dataclass(frozen=True)
class Mixture:
    """A kind of mixture.

    Attributes:
        build: Makes one; the same weights every time.
        router: What the router's weight is called.
        former: What the experts' linear layers were called before they were grouped; empty if they always were.
    """

    name: str
    build: Callable[[], nn.Module]
    router: str = "gate.weight"
    former: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name


def logits(model: nn.Module) -> Tensor:
    """The model's output on fixed ids."""
    ids = torch.randint(3, 64, (2, 9), generator=torch.Generator().manual_seed(2))
    result: Tensor = model(input_ids=ids).logits
    return result


def _built(kind: Any, config: Any) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = kind(config)
    # A config of this size would otherwise route by noise alone.
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "embed" not in name:
            parameter.data.mul_(8)
    return model.eval()


def _mixtral() -> nn.Module:
    config = MixtralConfig(**_COMMON, intermediate_size=24, num_key_value_heads=2, num_local_experts=4)
    return _built(MixtralForCausalLM, config)


def _qwen3() -> nn.Module:
    config = Qwen3MoeConfig(
        **_COMMON,
        intermediate_size=24,
        moe_intermediate_size=24,
        num_key_value_heads=2,
        num_experts=4,
        head_dim=8,
    )
    return _built(Qwen3MoeForCausalLM, config)


def _gpt_oss() -> nn.Module:
    config = GptOssConfig(
        **_COMMON,
        intermediate_size=24,
        num_key_value_heads=2,
        num_local_experts=4,
        head_dim=8,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    return _built(GptOssForCausalLM, config)


def _deepseek() -> nn.Module:
    config = DeepseekV3Config(
        **_COMMON,
        intermediate_size=24,
        moe_intermediate_size=24,
        num_key_value_heads=4,
        n_routed_experts=8,
        n_group=2,
        topk_group=1,
        first_k_dense_replace=1,
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_rope_head_dim=4,
        qk_nope_head_dim=4,
        v_head_dim=4,
    )
    return _built(DeepseekV3ForCausalLM, config)


_GATED = ("gate_proj", "up_proj", "down_proj")

MIXTRAL = Mixture("mixtral", _mixtral, former=("w1", "w3", "w2"))
QWEN3 = Mixture("qwen3_moe", _qwen3, former=_GATED)
#: Its experts' weights are stored as (experts, in, out), and were always grouped.
GPT_OSS = Mixture("gpt_oss", _gpt_oss, router="router.weight")
#: One layer is dense, the other has an expert for all tokens, both with linear layers of the experts' former names.
DEEPSEEK = Mixture("deepseek_v3", _deepseek, former=_GATED)

MIXTURES = (MIXTRAL, QWEN3, GPT_OSS, DEEPSEEK)
