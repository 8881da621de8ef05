"""LoRA on every kind of model, with the modules that are usual for it and with all linear layers, next to HF PEFT."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import peft
import pytest
import torch
import transformers as hf
from tests.methods.oracle import assert_same, pair
from torch import Tensor, nn

import manytune
from manytune import LoraConfig

VOCABULARY = 64
DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
ENCODER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


@dataclass(frozen=True)
class Kind:
    """A kind of model.

    Attributes:
        config: Name of its configuration class, and the sizes.
        model: Name of its class.
        task: What HF PEFT calls its use.
        targets: Options of the adapter; none for the usual modules.
    """

    config: str
    sizes: dict[str, Any] = field(hash=False)
    model: str
    task: str | None
    targets: dict[str, Any] = field(default_factory=dict, hash=False)

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        return getattr(hf, self.model)(getattr(hf, self.config)(**self.sizes)).eval()

    def run(self, model: nn.Module) -> Tensor:
        generator = torch.Generator().manual_seed(5)
        if "image_size" in self.sizes:
            return model(pixel_values=torch.randn(2, 3, 8, 8, generator=generator).double()).logits
        ids = torch.randint(3, VOCABULARY, (2, 7), generator=generator)
        return model(input_ids=ids).logits

    def __str__(self) -> str:
        return f"{self.model}-{self.targets.get('target_modules', 'usual')}"


def decoder(name: str, **sizes: Any) -> list[Kind]:
    kinds = [{}, {"target_modules": "all-linear"}]
    return [Kind(f"{name}Config", DECODER | sizes, f"{name}ForCausalLM", "CAUSAL_LM", kind) for kind in kinds]


VIT = {"image_size": 8, "patch_size": 4, **ENCODER}
QUERY = {"target_modules": ["q_proj", "v_proj"]}
KINDS = [
    *decoder("Llama"),
    *decoder("Mistral", sliding_window=5),
    *decoder("Qwen2"),
    *decoder("Qwen3"),
    *decoder("Gemma"),
    *decoder("Gemma2", query_pre_attn_scalar=8),
    Kind("ViTConfig", VIT, "ViTForImageClassification", None, {**QUERY, "modules_to_save": ["classifier"]}),
    Kind("ViTConfig", VIT, "ViTForImageClassification", None, {"target_modules": "all-linear"}),
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_output_and_gradients_are_hf_pefts(kind: Kind) -> None:
    options = {"r": 2, "task_type": kind.task, **kind.targets}
    mine, oracle = pair(kind.build, LoraConfig(**options), peft.LoraConfig(**options))
    assert_same(mine, oracle, kind.run)


class Digits(nn.Module):
    """A small convolutional network."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 8, 3),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
        )
        self.classify = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.classify(self.features(images).flatten(1))
        return result


@pytest.mark.parametrize(
    "config", ["LoraConfig", "IA3Config", "AdaLoraConfig"], ids=["lora", "ia3", "adalora"]
)
def test_a_convolutional_network_is_adapted_as_in_hf_peft(config: str) -> None:
    options: dict[str, Any] = {
        "target_modules": ["features.0", "features.3"],
        "modules_to_save": ["classify"],
    }
    options |= {"feedforward_modules": []} if config == "IA3Config" else {}
    options |= {"total_step": 10, "init_r": 2, "target_r": 1} if config == "AdaLoraConfig" else {}
    mine, oracle = pair(Digits, getattr(manytune, config)(**options), getattr(peft, config)(**options))
    mine.eval()
    oracle.eval()
    images = torch.randn(3, 1, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    if config == "AdaLoraConfig":
        # HF PEFT trains the divisor of its scaling, which here is constant.
        with torch.no_grad():
            torch.testing.assert_close(mine(images), oracle(images), rtol=1e-4, atol=1e-5)
    else:
        assert_same(mine, oracle, lambda model: model(images))
