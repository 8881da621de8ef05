"""Tiny models with varied greedy answers, plain and with LoRA, and prompts for them."""

from __future__ import annotations

import torch
from tests.engine import adapters
from transformers import GPT2LMHeadModel

from manytune.methods.lora.config import LoraConfig
from manytune.model.attach import get_peft_model

VOCABULARY, END = adapters.VOCABULARY, adapters.END
PROMPTS = [(5, 6, 7), (8,), (9, 10, 11, 12, 13, 14, 15), (16, 17), (5, 6, 7, 8), (20, 21, 22, 23, 24)]


def llama():
    return adapters.llama(spread=0.5)


def gpt2():
    return adapters.gpt2(spread=0.5)


def with_lora(model):
    targets = ["c_attn"] if isinstance(model, GPT2LMHeadModel) else ["q_proj", "v_proj"]
    fan_in_fan_out = isinstance(model, GPT2LMHeadModel)
    adapted = get_peft_model(
        model, LoraConfig(r=4, target_modules=targets, fan_in_fan_out=fan_in_fan_out, task_type="CAUSAL_LM")
    )
    torch.manual_seed(5)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return adapted.eval()


MODELS = {
    "llama": llama,
    "gpt2": gpt2,
    "llama with LoRA": lambda: with_lora(llama()),
    "gpt2 with LoRA": lambda: with_lora(gpt2()),
}
