"""`AutoPeftModelFor…`: the base that an adapter names is loaded with it, for every task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.methods.tiny_models import BERT, GPT2, LLAMA, T5, VOCABULARY, Family
from transformers import BertConfig, BertForQuestionAnswering, BertForTokenClassification, BertModel

import manytune


def tiny_bert(kind: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return kind(BertConfig(vocab_size=VOCABULARY, **sizes))


TASKS = {
    "CausalLM": ("CAUSAL_LM", LLAMA.build),
    "Seq2SeqLM": ("SEQ_2_SEQ_LM", T5.build),
    "SequenceClassification": ("SEQ_CLS", BERT.build),
    "TokenClassification": ("TOKEN_CLS", lambda: tiny_bert(BertForTokenClassification)),
    "QuestionAnswering": ("QUESTION_ANS", lambda: tiny_bert(BertForQuestionAnswering)),
    "FeatureExtraction": ("FEATURE_EXTRACTION", lambda: tiny_bert(BertModel)),
}


def saved(directory: Path, build: Any, task_type: str | None) -> Any:
    build().save_pretrained(directory / "base")
    base = build()
    base.name_or_path = str(directory / "base")
    config = manytune.LoraConfig(task_type=task_type, init_lora_weights=False)
    model: Any = manytune.get_peft_model(base, config).eval()
    model.save_pretrained(directory / "adapter")
    return model


def output(model: Any, family: Family = LLAMA) -> torch.Tensor:
    inputs = {"input_ids": family.inputs()["input_ids"]}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    with torch.no_grad():
        result: torch.Tensor = model(**inputs)[0]
    return result


@pytest.mark.parametrize("task", list(TASKS))
def test_base_and_adapter_come_back_in_the_class_of_their_task(task: str, tmp_path: Path) -> None:
    task_type, build = TASKS[task]
    expected = output(saved(tmp_path, build, task_type))
    for loader in (getattr(manytune, f"AutoPeftModelFor{task}"), manytune.AutoPeftModel):
        model = loader.from_pretrained(tmp_path / "adapter")
        assert type(model) is getattr(manytune, f"PeftModelFor{task}")
        torch.testing.assert_close(output(model), expected)


def test_without_a_task_the_class_of_the_base_says_what_to_load(tmp_path: Path) -> None:
    expected = output(saved(tmp_path, GPT2.build, None))
    model = manytune.AutoPeftModel.from_pretrained(tmp_path / "adapter")
    assert type(model) is manytune.PeftModel
    torch.testing.assert_close(output(model), expected)


@pytest.mark.parametrize("library", ["os", "transformersish.models"])
def test_a_file_does_not_import_what_it_likes(library: str, tmp_path: Path) -> None:
    saved(tmp_path, GPT2.build, None)
    path = tmp_path / "adapter" / "adapter_config.json"
    options = json.loads(path.read_text())
    options["auto_mapping"]["parent_library"] = library
    path.write_text(json.dumps(options))
    with pytest.raises(manytune.CheckpointError, match="names no model of transformers"):
        manytune.AutoPeftModel.from_pretrained(tmp_path / "adapter")


def test_an_adapter_of_another_task_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, LLAMA.build, "CAUSAL_LM")
    with pytest.raises(manytune.CheckpointError, match="Expected target PEFT class: PeftModelForCausalLM"):
        manytune.AutoPeftModelForSeq2SeqLM.from_pretrained(tmp_path / "adapter")


@pytest.mark.parametrize(("words", "rows"), [(VOCABULARY + 3, VOCABULARY + 3), (10, VOCABULARY)])
def test_the_embeddings_make_room_for_the_tokenizer_and_never_shrink(
    words: int, rows: int, tmp_path: Path
) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    saved(tmp_path, LLAMA.build, "CAUSAL_LM")
    tokenizer = Tokenizer(WordLevel({f"w{i}": i for i in range(words)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0").save_pretrained(tmp_path / "adapter")
    model = manytune.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert model.get_base_model().get_input_embeddings().weight.shape[0] == rows
