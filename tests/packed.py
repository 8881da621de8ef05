"""Bases that bitsandbytes or torchao have packed, as far as their CPU builds run."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.store.tiny import LETTERS, tiny_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

KINDS = ["bitsandbytes-4bit", "bitsandbytes-8bit", "torchao-int8"]


def installed(kind: str) -> str:
    """The library of a kind. Skips the test if it isn't there; the `quant` extra brings both."""
    library = kind.partition("-")[0]
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} isn't installed (pip install 'manytune[quant]')")
    return library


def quantization(kind: str) -> Any:
    """transformers' configuration of a kind."""
    if installed(kind) == "bitsandbytes":
        from transformers import BitsAndBytesConfig

        if kind.endswith("8bit"):
            return BitsAndBytesConfig(load_in_8bit=True)
        return BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        )
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def pack(kind: str, directory: Path) -> Any:
    """A base from a directory, packed."""
    return AutoModelForCausalLM.from_pretrained(directory, quantization_config=quantization(kind)).eval()


def save_base(directory: Path, *, vocabulary: int = len(LETTERS) + 3, seed: int = 0) -> Path:
    """A base that generates letters, unpacked, of sizes that fill whole blocks of 64 weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


def save_packed(kind: str, unpacked: Path, directory: Path) -> Path:
    """The same base, stored packed."""
    pack(kind, unpacked).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory
