"""Models from configurations, with two layers and a hidden size of 32, and inputs that suit them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from tests.built_once import built_once
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

VOCABULARY = 64


@dataclass(frozen=True)
class Family:
    """A kind of model.

    Attributes:
        build: Makes one; the same weights every time.
        task_type: What HF PEFT calls its task.
        extra: Inputs next to `input_ids` and `labels`.
    """

    name: str
    build: Callable[[], nn.Module]
    task_type: str
    extra: Mapping[str, Tensor] = field(default_factory=dict, hash=False)

    def inputs(self) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(5)
        ids = torch.randint(3, VOCABULARY, (3, 9), generator=generator)
        labels = torch.tensor([0, 1, 1]) if self.task_type == "SEQ_CLS" else ids.clone()
        if self.task_type == "SEQ_2_SEQ_LM":
            labels = torch.randint(3, VOCABULARY, (3, 5), generator=generator)
        return {"input_ids": ids, "labels": labels, **self.extra}

    def __str__(self) -> str:
        return self.name


@built_once
def _llama(layers: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            pad_token_id=0,
        )
    )


@built_once
def _gpt2(layers: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=32,
            n_layer=layers,
            n_head=4,
            n_positions=64,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    )


@built_once
def _t5(layers: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=VOCABULARY,
            d_model=32,
            d_ff=48,
            d_kv=8,
            num_layers=layers,
            num_heads=4,
            dropout_rate=0.0,
            decoder_start_token_id=0,
        )
    )


@built_once
def _bert(layers: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=64,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )


@built_once
def _opt() -> nn.Module:
    torch.manual_seed(0)
    return OPTForCausalLM(
        OPTConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            ffn_dim=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            word_embed_proj_dim=32,
            dropout=0.0,
            attention_dropout=0.0,
        )
    )


LLAMA = Family("llama", _llama, "CAUSAL_LM")
GPT2 = Family("gpt2", _gpt2, "CAUSAL_LM")
T5 = Family("t5", _t5, "SEQ_2_SEQ_LM")
BERT = Family("bert", _bert, "SEQ_CLS")
OPT = Family("opt", _opt, "CAUSAL_LM")

FAMILIES = (LLAMA, GPT2, T5, BERT)

#: The same by name, with half of the layers.
ONE_LAYER = {family.name: replace(family, build=partial(family.build, layers=1)) for family in FAMILIES}


def move(model: nn.Module) -> None:
    """Add noise to everything that trains, the same every time."""
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.data.add_(0.1 * noise)


def logits_of(model: nn.Module, family: Family) -> Tensor:
    """The logits for a family's inputs."""
    with torch.no_grad():
        found: Tensor = model(**family.inputs()).logits
    return found
