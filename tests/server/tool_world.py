"""Small bases of random weights that read any text, each with a family's chat template; and tools for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tests.chat_templates import tokenizer_of
from transformers import LlamaConfig, LlamaForCausalLM

from manytune.engine.options import EngineOptions
from manytune.server.app import create_app
from manytune.server.settings import Settings
from manytune.store.base import Base, load_base
from manytune.store.store import AdapterStore

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a place.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"enum": ["Oslo", "Rome"]},
                "days": {"type": "integer", "minimum": 0, "maximum": 9},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock", "description": "The time."}}


def save_chat_base(directory: Path, family: str) -> Base:
    """A base whose tokens are bytes and a few longer ones; its answers are noise unless they are constrained."""
    tokenizer = tokenizer_of(family)
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 7,  # as models have it: more rows than tokens
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.3,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return load_base(str(directory))


def app_of_base(base: Base, directory: Path, **settings: Any) -> Any:
    """An application that serves a base without adapters."""
    values = {
        "base_name": "base",
        "max_answer_tokens": 600,
        "watch_seconds": 3600.0,
        "drain_seconds": 5.0,
        **settings,
    }
    options = EngineOptions(max_batch=8, weights="plain", kv_budget_tokens=65536)
    return create_app(base, AdapterStore(directory / "store"), Settings(**values), None, options)
