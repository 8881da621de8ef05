"""A tokenizer of whole words, and a base of a few thousand weights that reads them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)


def word_tokenizer(words: Sequence[str], *, unknown: str, **options: Any) -> PreTrainedTokenizerFast:
    """Words between blanks are tokens, numbered in their order; any other word is the unknown one."""
    numbers = {word: number for number, word in enumerate(words)}
    core = Tokenizer(models.WordLevel(numbers, unk_token=unknown))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, **options)


def save_word_base(directory: Path, words: Sequence[str]) -> None:
    """A Llama of two layers; the first word is the pad token, the second ends a text."""
    pad, end, *_ = words
    word_tokenizer(words, unknown=pad, pad_token=pad, eos_token=end).save_pretrained(directory)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(directory)


def save_word_encoder(directory: Path, words: Sequence[str], **options: Any) -> None:
    """A BERT of two layers; the first word is the pad token, the second the unknown one, then begin and end.

    Args:
        directory: Where to.
        words: The vocabulary.
        options: Further options of its configuration.
    """
    pad, unknown, begin, end, *_ = words
    tokenizer = word_tokenizer(words, unknown=unknown, pad_token=pad, unk_token=unknown)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        f"{begin} $A {end}", None, [(begin, 2), (end, 3)]
    )
    tokenizer.save_pretrained(directory)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    BertModel(BertConfig(vocab_size=len(words), **sizes, **options)).save_pretrained(directory)


def write_nothing_between_tokens(base: Path) -> None:
    """Let a saved tokenizer decode tokens without blanks between them, so that its texts may be JSON."""
    file = base / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"decoder": {"type": "Fuse"}}))
