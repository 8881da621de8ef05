"""A base small enough to build in a moment, saved as a directory."""

import tempfile
from functools import cache
from pathlib import Path

import torch
from tests.built_once import built_once
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedTokenizerFast,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: number for number, token in enumerate(["<end>", "<unk>", " ", *LETTERS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", unk_token="<unk>")


@built_once
def tiny_model(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(LETTERS) + 3,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=0,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


@cache
def _saved(seed: int) -> tuple[dict[str, bytes], torch.Tensor]:
    """The files of a base, by name, and the state of torch's random numbers after it was drawn."""
    with tempfile.TemporaryDirectory() as directory:
        tiny_model(seed).save_pretrained(directory)
        tiny_tokenizer().save_pretrained(directory)
        files = {path.name: path.read_bytes() for path in Path(directory).iterdir()}
        return files, torch.get_rng_state()


def save_tiny_base(directory: Path, seed: int = 0) -> Path:
    files, state = _saved(seed)
    torch.set_rng_state(state)
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return directory


def save_tiny_mixture(directory: Path) -> Path:
    """A mixture of four experts, of which each token has two; its answers vary."""
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=len(LETTERS) + 3,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=0,
    )
    model = MixtralForCausalLM(config)
    for parameter in model.parameters():
        parameter.data *= 6
    model.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory
