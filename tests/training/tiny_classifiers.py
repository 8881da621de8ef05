"""Bases with which classifiers train in a moment, and rows whose label is in their letters."""

import json
import random
from pathlib import Path
from typing import Any

import torch
from tests.store.tiny import LETTERS, save_tiny_base
from transformers import (
    AutoModel,
    BertConfig,
    DistilBertConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

VOCABULARY = len(LETTERS) + 5


def encoder_config(kind: str) -> PretrainedConfig:
    if kind == "distilbert":
        return DistilBertConfig(
            vocab_size=VOCABULARY,
            dim=16,
            n_layers=2,
            n_heads=2,
            hidden_dim=32,
            max_position_embeddings=64,
            dropout=0.0,
            attention_dropout=0.0,
            seq_classif_dropout=0.0,
        )
    family = {"bert": BertConfig, "roberta": RobertaConfig}[kind]
    return family(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=66,
        pad_token_id=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


def encoder_tokenizer() -> PreTrainedTokenizerFast:
    """A letter is a token, and a text is between [CLS] and [SEP]; of two texts the second has type 1."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokens = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", " ", *LETTERS]
    backend = Tokenizer(models.WordLevel({token: n for n, token in enumerate(tokens)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 0), ("[SEP]", 2)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, cls_token="[CLS]", pad_token="[PAD]", sep_token="[SEP]", unk_token="[UNK]"
    )


def save_base(kind: str, directory: Path) -> Path:
    """A tiny encoder (`bert`, `distilbert`, `roberta`) or decoder (`llama`)."""
    if kind == "llama":
        return save_tiny_base(directory)
    torch.manual_seed(0)
    model = AutoModel.from_config(encoder_config(kind))
    if kind == "roberta":
        model.pooler = None  # as checkpoints of masked language models have none
    for parameter in model.parameters():
        parameter.data *= 3
    model.save_pretrained(directory)
    encoder_tokenizer().save_pretrained(directory)
    return directory


def write_labelled(
    path: Path, count: int, *, seed: int = 0, names: tuple[str, ...] = ("vowel", "other")
) -> Path:
    """Rows whose text has many `a` or many `z`, and a label that says which."""
    draw = random.Random(seed)
    lines = []
    for row in range(count):
        place = row % len(names)
        mark = "az"[place % 2] if len(names) == 2 else LETTERS[place * 3]
        text = "".join(draw.choice([mark, mark, draw.choice(LETTERS)]) for _ in range(draw.randint(4, 14)))
        lines.append(json.dumps({"text": text, "label": names[place]}))
    path.write_text("\n".join(lines) + "\n")
    return path


def classifier_content(directory: Path, kind: str = "bert", **training: Any) -> dict[str, Any]:
    """A recipe of a classifier over a tiny base and 48 rows, in a directory of its own."""
    directory.mkdir(parents=True, exist_ok=True)
    return {
        "base": str(save_base(kind, directory / "base")),
        "task": "classification",
        "data": {
            "train": str(write_labelled(directory / "rows.jsonl", 48)),
            "validation": 0.25,
            "test": 0.25,
            "text": "{{ text }}",
            "label": "label",
        },
        "method": {"name": "lora", "r": 2, "target_modules": "all-linear"},
        "training": {"epochs": 4, "batch_size": 4, "learning_rate": 0.02, "checkpoint_every": 4, **training},
        "output": str(directory / "run"),
    }


def write_numbers(path: Path, count: int, *, seed: int = 0) -> Path:
    """Rows whose text has `a` and `z` alone, and ten more than ten times the share of `a` as the label."""
    draw = random.Random(seed)
    lines = []
    for _ in range(count):
        text = "".join(draw.choice("az") for _ in range(draw.randint(4, 10)))
        lines.append(json.dumps({"text": text, "score": round(10 + 10 * text.count("a") / len(text), 2)}))
    path.write_text("\n".join(lines) + "\n")
    return path


def regression_content(directory: Path, kind: str = "bert", **training: Any) -> dict[str, Any]:
    """A recipe of a regression over a tiny base and 48 rows, in a directory of its own."""
    content = classifier_content(directory, kind, **training)
    rows = str(write_numbers(directory / "numbers.jsonl", 48))
    return {
        **content,
        "task": "regression",
        "data": {**content["data"], "train": rows, "label": "score"},
    }


def write_tagged(path: Path, count: int, *, seed: int = 0) -> Path:
    """Rows of words: `q` and `qr` are a name of type X, `w` one of type Y, and everything else is outside."""
    draw = random.Random(seed)
    names = [(["q"], ["B-X"]), (["q", "r"], ["B-X", "I-X"]), (["w"], ["B-Y"])]
    lines = []
    for _ in range(count):
        words, tags = [], []
        for _ in range(draw.randint(1, 3)):
            plain = "".join(draw.choice("abc") for _ in range(draw.randint(1, 3)))
            marked = draw.choice(names)
            words += [plain, *marked[0]]
            tags += ["O", *marked[1]]
        lines.append(json.dumps({"tokens": words, "ner": tags}))
    path.write_text("\n".join(lines) + "\n")
    return path


def tagged_content(directory: Path, kind: str = "bert", **training: Any) -> dict[str, Any]:
    """A recipe of a classifier of words over a tiny base and 48 rows, in a directory of its own."""
    content = classifier_content(directory, kind, **training)
    rows = str(write_tagged(directory / "tagged.jsonl", 48))
    data = {"train": rows, "validation": 0.25, "test": 0.25, "tokens": "tokens", "tags": "ner"}
    return {**content, "task": "token-classification", "data": data}
