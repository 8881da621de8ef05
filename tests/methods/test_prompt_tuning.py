"""Prompt tuning: how its embeddings start. What it shares with the others is tested in test_soft_prompts.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.methods import prompts
from tests.methods.tiny_models import LLAMA
from torch import nn
from transformers import PreTrainedTokenizerFast

import manytune


def attached(**options: Any) -> Any:
    torch.manual_seed(1)
    config = manytune.PromptTuningConfig(**{"task_type": "CAUSAL_LM", "num_virtual_tokens": 4, **options})
    return manytune.get_peft_model(prompts.livelier(LLAMA.build()), config)


@pytest.fixture
def tokenizer_directory(tmp_path: Path) -> Path:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = {"good": 5, "or": 6, "bad": 7, "<unk>": 0}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "rows"), [("good or bad", [5, 6, 7, 5]), ("bad or good or bad", [7, 6, 5, 6])]
)
def test_text_gives_its_embeddings_repeated_or_cut(
    tokenizer_directory: Path, text: str, rows: list[int]
) -> None:
    model = attached(
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text=text,
        tokenizer_name_or_path=str(tokenizer_directory),
    )
    table = model.get_base_model().get_input_embeddings().weight
    assert torch.equal(model.prompt_encoder["default"].embedding.weight, table[rows])


def test_a_configuration_can_not_make_the_tokenizer_run_code(
    monkeypatch: pytest.MonkeyPatch, tokenizer_directory: Path
) -> None:
    import transformers

    seen: list[dict[str, Any]] = []
    genuine = transformers.AutoTokenizer.from_pretrained

    def spy(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs)
        return genuine(*args, **kwargs)

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", spy)
    attached(
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text="good",
        tokenizer_name_or_path=str(tokenizer_directory),
        tokenizer_kwargs={"trust_remote_code": True, "padding_side": "left"},
    )
    assert seen == [{"padding_side": "left"}]


def test_sample_vocab_takes_rows_of_the_embeddings() -> None:
    model = attached(prompt_tuning_init="SAMPLE_VOCAB")
    table = model.get_base_model().get_input_embeddings().weight
    for row in model.prompt_encoder["default"].embedding.weight:
        assert (table == row).all(dim=1).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "x"},
            "tokenizer_name_or_path can't be None",
        ),
        ({"prompt_tuning_init": "TEXT", "tokenizer_name_or_path": "x"}, "init_text can't be None"),
        ({"tokenizer_kwargs": {"a": 1}}, "tokenizer_kwargs only valid when using prompt_tuning_init='TEXT'"),
        ({"prompt_tuning_init": "BEST"}, "one of RANDOM, TEXT, SAMPLE_VOCAB, found 'BEST'"),
        ({"task_type": None}, "task_type is needed"),
        ({"num_virtual_tokens": None}, "num_virtual_tokens should be a positive integer, found None"),
        ({"num_virtual_tokens": 0}, "num_virtual_tokens should be a positive integer, found 0"),
        (
            {"num_transformer_submodules": "1"},
            r"num_transformer_submodules: expected int \| None; found '1'",
        ),
        ({"num_layers": 0}, "num_layers should be a positive integer, found 0"),
        ({"token_dim": 8}, "token_dim=8, but LlamaForCausalLM reads embeddings of size 32"),
        ({"task_type": "SEQ_2_SEQ_LM"}, "LlamaForCausalLM is not an encoder-decoder"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(manytune.ConfigError, match=message):
        attached(**options)


def test_a_module_to_save_that_is_not_there_is_named() -> None:
    with pytest.raises(manytune.ConfigError, match=r"modules_to_save names \['nothing'\]"):
        attached(modules_to_save=["nothing"])


def test_a_model_without_embeddings_is_refused() -> None:
    config = manytune.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(manytune.ConfigError, match="need a transformers PreTrainedModel, found Linear"):
        manytune.get_peft_model(nn.Linear(2, 2), config)
