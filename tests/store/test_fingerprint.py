from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.store.tiny import save_tiny_base, tiny_model, tiny_tokenizer

from manytune.errors import StoreError
from manytune.methods.config import PeftConfig
from manytune.methods.registry import peft_config_from
from manytune.model.attach import get_peft_model
from manytune.store.base import load_base
from manytune.store.fingerprint import Fingerprint, fingerprint


def test_the_same_base_has_the_same_fingerprint_wherever_it_is_loaded_from(tmp_path: Path) -> None:
    first = load_base(str(save_tiny_base(tmp_path / "here"))).fingerprint
    second = load_base(str(save_tiny_base(tmp_path / "there"))).fingerprint
    assert first == second
    assert first.differences(second) == ()


def test_loading_in_bfloat16_gives_the_fingerprint_of_float32(tmp_path: Path) -> None:
    spec = str(save_tiny_base(tmp_path))
    assert load_base(spec, dtype="bfloat16").fingerprint == load_base(spec, dtype="float32").fingerprint


def test_other_weights_another_configuration_and_another_template_are_each_told_apart() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    original = fingerprint(model, tokenizer)

    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] += 1.0
    assert original.differences(fingerprint(model, tokenizer)) == ("weights",)

    model = tiny_model()
    model.config.rms_norm_eps = 1e-3
    assert original.differences(fingerprint(model, tokenizer)) == ("config",)

    tokenizer.chat_template = "{{ messages }}"
    assert original.differences(fingerprint(tiny_model(), tokenizer)) == ("tokenizer",)


def test_how_a_model_is_run_does_not_change_its_fingerprint() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    original = fingerprint(model, tokenizer)
    model.config.use_cache = False
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer(["a", "a b"], padding=True, truncation=True, max_length=2)
    assert fingerprint(model, tokenizer) == original


@pytest.mark.parametrize(
    "config",
    [
        peft_config_from("lora", target_modules=["q_proj", "embed_tokens"]),
        peft_config_from("lora", target_modules=["q_proj"], modules_to_save=["norm"]),
        peft_config_from("full"),
    ],
    ids=["lora", "modules_to_save", "full"],
)
def test_attaching_an_adapter_does_not_change_the_fingerprint(config: PeftConfig) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    original = fingerprint(model, tokenizer)
    assert fingerprint(get_peft_model(model, config), tokenizer) == original


def test_a_fingerprint_survives_json_and_refuses_anything_else() -> None:
    original = Fingerprint("a", "b", "c")
    assert Fingerprint.from_dict(original.to_dict()) == original
    assert replace(original, weights="x").differences(original) == ("weights",)
    whole = original.to_dict()
    for broken in ({"config": "a"}, whole | {"weights": 1}, whole | {"stored_packed": "no"}, None):
        with pytest.raises(StoreError, match="config, tokenizer, weights"):
            Fingerprint.from_dict(broken)


def test_a_fingerprint_whose_hashes_disagree_is_of_another_base() -> None:
    """One of weights outside of linear layers that differs where that of all weights doesn't: it was altered."""
    original = Fingerprint("a", "b", "c", unpacked="d")
    assert original.differences(replace(original, unpacked="e")) == ("weights",)
    assert original.differences(replace(original, unpacked=None)) == ()  # of an earlier release
