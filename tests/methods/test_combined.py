"""A method in the layers and a soft prompt as one adapter, against both applied by hand."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from tests.methods import prompts
from tests.methods.tiny_models import BERT, LLAMA, T5, Family
from tests.reference.lora_and_prompt_by_hand import apply_by_hand
from torch import nn

import manytune
from manytune.methods.combined import export_parts
from manytune.training.method_recipe import MethodRecipe

IDS = LLAMA.inputs()["input_ids"]
TARGETS = {"llama": ["q_proj", "v_proj"], "bert": ["query", "value"], "t5": ["q", "v"]}
PROMPTS = {
    "prompt-tuning": manytune.PromptTuningConfig,
    "p-tuning": manytune.PromptEncoderConfig,
    "prefix-tuning": manytune.PrefixTuningConfig,
}
each_prompt = pytest.mark.parametrize("prompt", list(PROMPTS))


def config(prompt: str, family: Family = LLAMA, **options: Any) -> manytune.CombinedConfig:
    return manytune.CombinedConfig(
        task_type=family.task_type,
        weights=manytune.LoraConfig(
            r=3, lora_alpha=6, target_modules=TARGETS[family.name], init_lora_weights=False
        ),
        prompt=PROMPTS[prompt](num_virtual_tokens=4),
        **options,
    )


def attached(prompt: str, family: Family = LLAMA) -> Any:
    torch.manual_seed(1)
    return manytune.get_peft_model(prompts.livelier(family.build()).double(), config(prompt, family))


def base_of(family: Family) -> nn.Module:
    return prompts.livelier(family.build()).double()


@each_prompt
@pytest.mark.parametrize("mask", [False, True], ids=["whole", "padded"])
def test_output_and_gradients_are_those_of_both_applied_by_hand(prompt: str, mask: bool) -> None:
    model = attached(prompt)
    inputs = prompts.padded(LLAMA) if mask else LLAMA.inputs()
    factors, virtual = dict(prompts.training(model)), model.prompt_encoder["default"]()
    found = model(**inputs).logits[:, -9:]
    expected = apply_by_hand(base_of(LLAMA), factors, virtual, prompt, inputs, scaling=2.0)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    weight = torch.linspace(-1, 1, found.numel(), dtype=found.dtype).view_as(found)
    mine = torch.autograd.grad((found * weight).sum(), list(factors.values()), retain_graph=True)
    twins = torch.autograd.grad((expected * weight).sum(), list(factors.values()))
    for name, own, twin in zip(factors, mine, twins, strict=True):
        torch.testing.assert_close(own, twin, rtol=1e-8, atol=1e-10, msg=name)


@each_prompt
def test_what_it_generates_is_what_the_merged_weights_and_the_prompt_generate(prompt: str) -> None:
    model = attached(prompt)
    options = {"input_ids": IDS, "max_new_tokens": 8, "do_sample": False}
    expected = model.generate(**options)
    model.merge_adapter()
    assert torch.equal(model.generate(**options), expected)
    model.unmerge_adapter()
    parts = attached(prompt)
    parts.tuner.weights.enable_adapters(enabled=False)
    assert not torch.equal(parts.generate(**options), expected)
    parts.tuner.enable_adapters(enabled=True)
    parts.tuner.prompt.enable_adapters(enabled=False)
    assert not torch.equal(parts.generate(**options), expected)


@each_prompt
def test_exactly_the_parameters_of_both_parts_train(prompt: str) -> None:
    model = attached(prompt)
    names = set(prompts.training(model))
    alone: set[str] = set()
    for part in config(prompt).parts:
        part.task_type = "CAUSAL_LM"
        alone |= set(prompts.training(manytune.get_peft_model(base_of(LLAMA), part)))
    assert names == alone
    model(**LLAMA.inputs()).loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in prompts.training(model).values())


@each_prompt
@pytest.mark.parametrize("family", [LLAMA, BERT, T5], ids=str)
def test_saved_and_loaded_it_gives_the_same(prompt: str, family: Family, tmp_path: Path) -> None:
    model = attached(prompt, family)
    expected = prompts.logits(model, **family.inputs())
    model.save_pretrained(tmp_path)
    loaded = manytune.PeftModel.from_pretrained(base_of(family), tmp_path)
    torch.testing.assert_close(prompts.logits(loaded, **family.inputs()), expected, rtol=1e-12, atol=1e-12)
    assert not prompts.training(loaded)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["peft_type"] == "COMBINED" and saved["weights"]["peft_type"] == "LORA"
    assert saved["weights"]["r"] == 3 and saved["prompt"]["num_virtual_tokens"] == 4


@each_prompt
def test_each_part_exported_is_an_adapter_that_peft_reads(prompt: str, tmp_path: Path) -> None:
    model = attached(prompt)
    model.save_pretrained(tmp_path / "both")
    weights, virtual = export_parts(tmp_path / "both", tmp_path / "parts")
    assert set(load_file(virtual / "adapter_model.safetensors")) == {"prompt_embeddings"}
    for directory, part in ((weights, model.tuner.weights), (virtual, model.tuner.prompt)):
        model.tuner.enable_adapters(enabled=False)
        part.enable_adapters(enabled=True)
        expected = prompts.logits(model, input_ids=IDS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            oracle: Any = peft.PeftModel.from_pretrained(base_of(LLAMA), directory)
        torch.testing.assert_close(prompts.logits(oracle, input_ids=IDS), expected, rtol=1e-6, atol=1e-6)


def test_what_its_parts_say_about_loading_holds_for_it() -> None:
    combined = manytune.CombinedConfig(
        task_type="CAUSAL_LM",
        weights={"name": "lora", "init_lora_weights": "pissa_niter_4"},
        prompt=manytune.PromptTuningConfig(
            num_virtual_tokens=3,
            prompt_tuning_init="TEXT",
            prompt_tuning_init_text="translate",
            tokenizer_name_or_path="nowhere",
        ),
    )
    assert "prompt_tuning_init_text" in combined.texts
    assert "randomised start" in (combined.loading_note or "")
    loading = combined.for_loading()
    assert loading.prompt.prompt_tuning_init == "RANDOM"  # its text would need a tokenizer
    assert combined.prompt.prompt_tuning_init == "TEXT"
    in_place = manytune.CombinedConfig(weights={"name": "full", "keep_base": False}, prompt=combined.prompt)
    assert in_place.for_loading().weights.keep_base


@pytest.mark.parametrize(("given", "expected"), [({}, 20), ({"total_step": 7}, 7)], ids=str)
def test_a_part_plans_for_the_steps_of_the_training(given: dict[str, int], expected: int) -> None:
    config = MethodRecipe(
        name="combined",
        weights={"name": "adalora", "target_modules": ["q_proj"], **given},
        prompt={"name": "prompt-tuning", "num_virtual_tokens": 3},
    ).peft_config()
    model: Any = manytune.get_peft_model(LLAMA.build(), config)
    (hooks,) = model.tuner.training_hooks()  # AdaLoRA's
    hooks.plan_steps(20)
    assert model.peft_config["default"].weights.total_step == expected


def test_only_a_combination_has_parts_to_export(tmp_path: Path) -> None:
    model = manytune.get_peft_model(LLAMA.build(), manytune.LoraConfig(task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path)
    with pytest.raises(manytune.ConfigError, match="expected an adapter of type COMBINED, found LORA"):
        export_parts(tmp_path, tmp_path / "parts")


def test_any_method_in_the_layers_goes_with_a_prompt(tmp_path: Path) -> None:
    for part in ({"name": "ia3"}, {"name": "full"}):
        torch.manual_seed(1)
        combined = manytune.CombinedConfig(
            task_type="CAUSAL_LM", weights=part, prompt={"name": "prompt-tuning", "num_virtual_tokens": 3}
        )
        model = manytune.get_peft_model(base_of(LLAMA), combined)
        for parameter in prompts.training(model).values():
            parameter.data.mul_(1.1)
        expected = prompts.logits(model, input_ids=IDS)
        model.save_pretrained(tmp_path / part["name"])
        loaded = manytune.PeftModel.from_pretrained(base_of(LLAMA), tmp_path / part["name"])
        assert torch.equal(prompts.logits(loaded, input_ids=IDS), expected)
        with model.disable_adapter():
            assert torch.equal(
                prompts.logits(model, input_ids=IDS), prompts.logits(base_of(LLAMA), input_ids=IDS)
            )


def test_a_head_belongs_to_the_part_in_the_layers() -> None:
    model = attached("prefix-tuning", BERT)
    assert model.peft_config["default"].weights.modules_to_save == ["classifier", "score"]
    assert "base_model.model.classifier.modules_to_save.default.weight" in prompts.training(model)
    assert model.modules_to_save == {"classifier", "score"}


def test_a_prompt_that_does_not_fit_leaves_no_trace() -> None:
    base = base_of(LLAMA)
    kinds = [type(module) for module in base.modules()]
    wrong = manytune.CombinedConfig(
        task_type="CAUSAL_LM",
        weights=manytune.LoraConfig(target_modules=["q_proj"]),
        prompt=manytune.PromptTuningConfig(num_virtual_tokens=2, token_dim=5),
    )
    with pytest.raises(manytune.ConfigError, match="token_dim=5"):
        manytune.get_peft_model(base, wrong)
    assert [type(module) for module in base.modules()] == kinds
    assert all(parameter.requires_grad for parameter in base.parameters())
    model = attached("prompt-tuning")
    with pytest.raises(manytune.ConfigError, match="token_dim=5"):
        model.add_adapter("b", wrong)
    assert list(model.peft_config) == ["default"] and list(model.tuner.weights.peft_config) == ["default"]


def test_adapters_beside_each_other_are_of_the_same_parts() -> None:
    model = attached("prompt-tuning")
    with pytest.raises(manytune.ConfigError, match=r"LORA \+ PROMPT_TUNING and LORA \+ PREFIX_TUNING"):
        model.add_adapter("b", config("prefix-tuning"))


def test_merging_for_good_would_lose_the_prompt() -> None:
    with pytest.raises(manytune.AdapterError, match="the soft prompt is not in the layers and would be lost"):
        attached("prompt-tuning").merge_and_unload()


def test_unloading_gives_the_plain_base() -> None:
    base = base_of(LLAMA)
    expected = prompts.logits(base, input_ids=IDS)
    model = manytune.get_peft_model(base, config("prefix-tuning"))
    assert model.unload() is base
    assert torch.equal(prompts.logits(base, input_ids=IDS), expected)


LORA, PREFIX = {"name": "lora"}, {"name": "prefix-tuning", "num_virtual_tokens": 2}


@pytest.mark.parametrize(
    ("weights", "prompt", "message"),
    [
        (None, PREFIX, r"weights: expected a configuration such as LoraConfig\(r=8\)"),
        (LORA, None, "prompt: expected a configuration such as PrefixTuningConfig"),
        (PREFIX, PREFIX, "weights: expected a method in the layers, found PREFIX_TUNING"),
        (LORA, LORA, "prompt: expected a soft prompt, found LORA"),
        (LORA, {**PREFIX, "modules_to_save": ["x"]}, "belongs to `weights`"),
        ({"name": "lora", "rang": 2}, PREFIX, "Method 'lora' has no option 'rang'"),
    ],
)
def test_a_part_that_is_missing_or_misplaced_is_named(weights: Any, prompt: Any, message: str) -> None:
    with pytest.raises(manytune.ConfigError, match=message):
        manytune.CombinedConfig(weights=weights, prompt=prompt)
