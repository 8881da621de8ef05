"""Attributes of a model that trainers and scripts written for HF PEFT read."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
from tests.methods.tiny_models import LLAMA
from transformers import Trainer, TrainingArguments

import manytune

CONFIGS: dict[str, dict[str, Any]] = {
    "LoraConfig": {},
    "IA3Config": {},
    "PromptTuningConfig": {"num_virtual_tokens": 2},
    "PrefixTuningConfig": {"num_virtual_tokens": 2},
}
READ = ("peft_type", "has_active_enabled_adapter", "active_adapter", "active_adapters", "modules_to_save")


def both(name: str) -> tuple[Any, Any]:
    options = {"task_type": "CAUSAL_LM", **CONFIGS[name]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(LLAMA.build(), getattr(peft, name)(**options))
    return manytune.get_peft_model(LLAMA.build(), getattr(manytune, name)(**options)), theirs


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("attribute", READ)
def test_an_attribute_has_pefts_value(name: str, attribute: str) -> None:
    mine, theirs = both(name)
    assert getattr(mine, attribute) == getattr(theirs, attribute)
    with mine.disable_adapter(), theirs.disable_adapter():
        assert getattr(mine, attribute) == getattr(theirs, attribute)
    assert mine.active_peft_config.is_adaption_prompt is theirs.active_peft_config.is_adaption_prompt is False
    assert mine.active_peft_config.peft_type.value == theirs.active_peft_config.peft_type.value


def test_has_active_enabled_adapter_is_false_once_none_is_left() -> None:
    model = manytune.get_peft_model(LLAMA.build(), manytune.LoraConfig())
    model.delete_adapter("default")
    assert not model.has_active_enabled_adapter


def test_the_trainers_card_is_brought_up_to_date(tmp_path: Path) -> None:
    """The Trainer asks a model for it if the card says `library_name: peft`."""
    model = manytune.get_peft_model(LLAMA.build(), manytune.LoraConfig(task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path)
    arguments = TrainingArguments(tmp_path, report_to=[], use_cpu=True)
    Trainer(model, arguments, train_dataset=[]).create_model_card(model_name="tiny")
    card = (tmp_path / "README.md").read_text()
    assert "library_name: peft" in card and "- lora" in card and "tiny" in card


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    model = manytune.get_peft_model(LLAMA.build(), manytune.LoraConfig())
    model.save_pretrained(tmp_path / "other", is_main_process=False)
    assert not (tmp_path / "other").exists()
    model.save_pretrained(tmp_path / "main", is_main_process=True)
    assert json.loads((tmp_path / "main" / "adapter_config.json").read_text())["r"] == 8


@pytest.mark.parametrize("former", [False, True])
def test_checkpointing_is_turned_on_by_either_name_without_a_deprecation(former: bool) -> None:
    model = manytune.get_peft_model(LLAMA.build(), manytune.LoraConfig())
    if former:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    else:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": True})
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    ids = LLAMA.inputs()["input_ids"]
    model.train()(input_ids=ids, labels=ids).loss.backward()
    # Reentrant checkpointing needs inputs that want gradients.
    assert all(p.grad is not None for n, p in model.named_parameters() if "lora_B" in n)
