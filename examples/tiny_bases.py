"""Bases of a few thousand random weights, with which the recipes here run without a hub, in seconds.

    python examples/tiny_bases.py                                      # writes runs/tiny/gpt2 and runs/tiny/t5
    manytune train examples/gpt2.yaml --set base=runs/tiny/gpt2
    manytune train examples/dialogue-t5.yaml --set base=runs/tiny/t5

They show that the way from rows to a server works. What they write after so little is nonsense; the hub's models are
what the recipes are for.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

HERE = Path(__file__).parent


def texts(file: Path) -> list[str]:
    """All texts of a file of rows."""
    return [
        value for line in file.read_text(encoding="utf-8").splitlines() for value in json.loads(line).values()
    ]


def tokenizer(learned: Iterable[str], *special: str) -> Tokenizer:
    """Byte-level BPE, as GPT-2 has it, with up to 512 tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        learned,
        trainers.BpeTrainer(
            vocab_size=512, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
        ),
    )
    return backend


def gpt2(directory: Path) -> None:
    """A GPT-2 of two layers."""
    backend = tokenizer(texts(HERE / "forecasts.jsonl"), "<|endoftext|>")
    ends = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **ends).save_pretrained(directory)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=backend.get_vocab_size(),
        n_positions=256,
        n_embd=32,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.2,
    )
    GPT2LMHeadModel(config).save_pretrained(directory)


def t5(directory: Path) -> None:
    """A T5 of two layers in encoder and decoder."""
    backend = tokenizer(texts(HERE / "dialogues.jsonl"), "<pad>", "</s>")
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(directory)
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=backend.get_vocab_size(),
        d_model=32,
        d_ff=64,
        d_kv=16,
        num_layers=2,
        num_heads=2,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    T5ForConditionalGeneration(config).save_pretrained(directory)


def main() -> None:
    """Write both."""
    options = argparse.ArgumentParser(
        description="Tiny bases for examples/gpt2.yaml and examples/dialogue-t5.yaml."
    )
    options.add_argument("--output", type=Path, default=Path("runs/tiny"), help="where to")
    chosen = options.parse_args()
    for name, write in {"gpt2": gpt2, "t5": t5}.items():
        write(chosen.output / name)
        print(chosen.output / name)


if __name__ == "__main__":
    main()
