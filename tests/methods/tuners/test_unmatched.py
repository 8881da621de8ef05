"""What matches nothing is an error in a user's options, and left over in a saved adapter's: for every method."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from tests.methods.lora.compared_with_peft import Net
from tests.methods.tiny_models import BERT, GPT2, LLAMA, T5
from torch import nn

from manytune import (
    AdaLoraConfig,
    BottleneckConfig,
    ConfigError,
    IA3Config,
    LoraConfig,
    NoMatchingPeftModuleError,
    PeftConfig,
    PeftModel,
    PeftWarning,
    PromptTuningConfig,
    SelectiveConfig,
    VeraConfig,
    get_peft_model,
    inject_adapter_in_model,
)
from manytune.methods.tuners.targets import adapter_layers

QV = ["q_proj", "v_proj"]


def lora(**options: Any) -> LoraConfig:
    return LoraConfig(r=2, **{"target_modules": QV, **options})


CASES: dict[str, tuple[Callable[[], PeftConfig], str]] = {
    # keys of patterns
    "alpha-anchored": (
        lambda: lora(alpha_pattern={"^q_proj": 100}),
        r"alpha_pattern\['\^q_proj'\] has no effect: it matches no targeted path\. '\^' means the beginning of "
        r"the whole path\. Did you mean 'q_proj'\?",
    ),
    "rank-misspelt": (
        lambda: lora(rank_pattern={"q_porj": 32}),
        r"rank_pattern\['q_porj'\] has no effect.*Did you mean 'q_proj'",
    ),
    "rank-untargeted": (
        lambda: lora(rank_pattern={"q_proj": 4, "up_proj": 32}),
        r"rank_pattern\['up_proj'\] has no effect: it names model\.layers\.0\.mlp\.up_proj, "
        r"model\.layers\.1\.mlp\.up_proj, which the adapter doesn't target",
    ),
    "alpha-layer-that-is-not-there": (
        lambda: lora(alpha_pattern={r"layers\.7\.self_attn\.q_proj": 4}),
        r"alpha_pattern\[.*\] has no effect.*Did you mean 'q_proj'",
    ),
    "rank-layer-left-out": (
        lambda: lora(layers_to_transform=[1], rank_pattern={"layers.0.self_attn.q_proj": 4}),
        r"it names model\.layers\.0\.self_attn\.q_proj, which the adapter doesn't target",
    ),
    "adalora-rank": (
        lambda: AdaLoraConfig(
            target_modules=QV,
            init_r=2,
            target_r=1,
            total_step=9,
            rank_pattern={"q_proj.lora_E": [True, False]},
        ),
        r"rank_pattern\['q_proj\.lora_E'\] has no effect.*nearest is 'model\.layers\.0\.self_attn\.\w+\.lora_E'",
    ),
    # layers
    "layer-index": (
        lambda: lora(layers_to_transform=[0, 99]),
        r"layers_to_transform names 99, and what target_modules=\['q_proj', 'v_proj'\] names lies in no such layer\. "
        r"The layers there are: 0 to 1, counted from 0",
    ),
    "layer-index-alone": (
        lambda: lora(layers_to_transform=99),
        "not found .* at those layers; those there are: 0, 1",
    ),
    "layer-index-from-the-end": (
        lambda: lora(layers_to_transform=[0, -1]),
        r"names -1.*0 to 1, counted from 0",
    ),
    "layers-pattern": (
        lambda: lora(layers_to_transform=[0], layers_pattern=["layer", "layers"]),
        r"layers_pattern: no targeted module lies in a numbered list called 'layer'\. Did you mean 'layers'",
    ),
    "target-outside-of-layers": (
        lambda: lora(target_modules=["q_proj", "lm_head"], layers_to_transform=[0]),
        r"target_modules: 'lm_head' names lm_head, and layers_to_transform=\[0\] leaves it out everywhere",
    ),
    "vera-layer-index": (
        lambda: VeraConfig(r=2, target_modules=QV, layers_to_transform=[0, 5]),
        r"layers_to_transform names 5.*0 to 1",
    ),
    "bottleneck-layer-index": (
        lambda: BottleneckConfig(bottleneck_size=2, layers_to_transform=[1, 2]),
        r"layers_to_transform names 2, and what attention_modules=.*0 to 1",
    ),
    "selective-layer-index": (
        lambda: SelectiveConfig(parameters=["q_proj"], layers_to_transform=[0, 4]),
        r"layers_to_transform names 4, and what parameters names lies in no such layer",
    ),
    # names of modules
    "target": (
        lambda: lora(target_modules=["q_proj", "v_porj"]),
        r"\['v_porj'\] not found.*Did you mean 'v_proj'",
    ),
    "vera-target": (
        lambda: VeraConfig(r=2, target_modules=["q_proj", "v_porj"]),
        r"\['v_porj'\] not found.*Did you mean 'v_proj'",
    ),
    "exclusion": (
        lambda: lora(exclude_modules=["k_porj"]),
        r"exclude_modules names 'k_porj', which match no module.*Did you mean 'k_proj'",
    ),
    "exclusion-among-others": (
        lambda: lora(exclude_modules=["layers.0.self_attn.q_proj", "layers.2.self_attn.q_proj"]),
        r"exclude_modules names 'layers\.2\.self_attn\.q_proj', which match no module",
    ),
    "exclusion-expression": (
        lambda: lora(exclude_modules=r".*layers\.7\..*"),
        r"exclude_modules names '\.\*layers\\\\\.7\\\\\.\.\*', which match no module",
    ),
    "ia3-exclusion": (
        lambda: IA3Config(target_modules=["k_proj"], exclude_modules=["q_porj"]),
        r"exclude_modules names 'q_porj'.*Did you mean 'q_proj'",
    ),
    "saved-module": (
        lambda: lora(modules_to_save=["embed_tokens", "lm_haed"]),
        r"modules_to_save names \['lm_haed'\], which match no module.*Did you mean 'lm_head'",
    ),
    "prompt-saved-module": (
        lambda: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2, modules_to_save=["lm_haed"]),
        r"modules_to_save names \['lm_haed'\].*Did you mean 'lm_head'",
    ),
    "selective-saved-module": (
        lambda: SelectiveConfig(parameters=["q_proj"], modules_to_save=["lm_haed"]),
        r"modules_to_save names \['lm_haed'\].*Did you mean 'lm_head'",
    ),
    "selective-parameter": (
        lambda: SelectiveConfig(parameters=["q_proj", "v_porj"]),
        r"parameters: 'v_porj' names no parameter.*Did you mean 'v_proj'",
    ),
    "ia3-feedforward": (
        lambda: IA3Config(target_modules=r".*\.(k_proj|down_proj)", feedforward_modules=["donw_proj"]),
        r"feedforward_modules: 'donw_proj' names none of the targeted modules.*Did you mean 'down_proj'",
    ),
    "bottleneck-attention": (
        lambda: BottleneckConfig(bottleneck_size=2, attention_modules=r".*\.o_porj"),
        r"attention_modules '.*o_porj' not found in the base model.*Did you mean 'o_proj'",
    ),
    "bottleneck-mlp": (
        lambda: BottleneckConfig(bottleneck_size=2, style="pfeiffer", mlp_modules=r".*\.down"),
        r"mlp_modules '.*down' not found in the base model",
    ),
    "bottleneck-unused": (
        lambda: BottleneckConfig(bottleneck_size=2, style="pfeiffer", attention_modules=r".*\.o_proj"),
        r"attention_modules: style='pfeiffer' puts nothing there",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_users_option_that_matches_nothing_is_an_error_that_names_the_nearest(name: str) -> None:
    config, message = CASES[name]
    base = LLAMA.build()
    before = repr(base), [n for n, p in base.named_parameters() if p.requires_grad]
    with pytest.raises((ConfigError, NoMatchingPeftModuleError), match=message):
        get_peft_model(base, config())
    assert (repr(base), [n for n, p in base.named_parameters() if p.requires_grad]) == before


def test_it_is_refused_for_a_later_adapter_too() -> None:
    model = get_peft_model(LLAMA.build(), lora())
    with pytest.raises(ConfigError, match="rank_pattern"):
        model.add_adapter("later", lora(rank_pattern={"k_proj": 4}))
    assert list(model.peft_config) == ["default"]
    assert all(list(layer.r) == ["default"] for _, layer in adapter_layers(model.get_base_model()))  # type: ignore[call-overload]


def test_it_is_refused_in_a_recipe() -> None:
    from manytune.methods.registry import peft_config_from

    config = peft_config_from("lora", target_modules="all-linear", alpha_pattern={"q_porj": 4})
    with pytest.raises(ConfigError, match="Did you mean 'q_proj'"):
        get_peft_model(LLAMA.build(), config)


# -- what is fine


@pytest.mark.parametrize(
    "options",
    [
        {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {r"model.layers.\d+.self_attn.v_proj": 4}},
        {"alpha_pattern": {"^model.layers.1.self_attn.q_proj": 4}},
        {"layers_to_transform": [0, 1], "layers_pattern": ["layers"]},
        {"exclude_modules": ["layers.0.self_attn.q_proj", "layers.1.self_attn.v_proj"]},
        {"modules_to_save": ["lm_head"]},
        {"rank_pattern": {}, "alpha_pattern": None, "exclude_modules": [], "modules_to_save": []},
        {"layers_to_transform": [], "layers_pattern": []},
    ],
)
def test_what_matches_passes_without_a_word(options: dict[str, Any]) -> None:
    get_peft_model(LLAMA.build(), lora(**options))


def test_an_empty_list_of_layers_narrows_nothing_down_as_in_peft() -> None:
    with silent():
        theirs = peft.get_peft_model(
            LLAMA.build(), peft.LoraConfig(target_modules=QV, layers_to_transform=[])
        )
    mine = get_peft_model(LLAMA.build(), lora(layers_to_transform=[]))
    assert mine.targeted_module_names == theirs.targeted_module_names


def test_an_exclusion_that_only_concerns_what_is_not_targeted_warns() -> None:
    with pytest.warns(PeftWarning, match="no modules were excluded"):
        get_peft_model(LLAMA.build(), lora(exclude_modules=["lm_head"]))
    with pytest.warns(
        PeftWarning, match=r"model\.layers\.0 isn't targeted itself, and what is in it isn't excluded"
    ):
        get_peft_model(LLAMA.build(), lora(exclude_modules=["layers.0"]))


def test_a_classifiers_usual_heads_need_not_all_be_there() -> None:
    get_peft_model(BERT.build(), LoraConfig(task_type="SEQ_CLS", modules_to_save=["pooler"]))


def test_usual_modules_that_a_variant_lacks_are_left_out() -> None:
    class Variant(nn.Module):
        """Like GPT-2, with fewer modules than IA3 usually scales."""

        def __init__(self) -> None:
            super().__init__()
            self.config = GPT2.build().config
            self.c_attn = nn.Linear(2, 2)

    config = IA3Config()
    with pytest.warns(PeftWarning, match=r"scales the inputs of mlp\.c_proj .* this one has none"):
        get_peft_model(Variant(), config)
    assert (config.target_modules, config.feedforward_modules) == ({"c_attn"}, set())


# -- saved adapters


@contextmanager
def silent() -> Iterator[None]:
    """Without HF PEFT's warnings, some of which say what this page is about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def written(tmp_path: Path, build: Callable[[], nn.Module], config: Any) -> Path:
    """An adapter that HF PEFT wrote."""
    with silent():
        peft.get_peft_model(build(), config).save_pretrained(tmp_path)
    return tmp_path


SAVED: dict[str, tuple[Callable[[], Any], str]] = {
    "target": (
        lambda: peft.LoraConfig(r=2, target_modules=["q_proj", "qkv"]),
        r"Target modules \['qkv'\] not found in the base model.*saved so; the adapter is loaded without it",
    ),
    "rank": (
        lambda: peft.LoraConfig(r=2, target_modules=QV, rank_pattern={"k_proj": 4}),
        r"rank_pattern\['k_proj'\] has no effect.*saved so",
    ),
    "alpha": (
        lambda: peft.LoraConfig(r=2, target_modules=QV, alpha_pattern={"^q_proj": 4}),
        r"alpha_pattern\['\^q_proj'\] has no effect.*saved so",
    ),
    "layer": (
        lambda: peft.LoraConfig(r=2, target_modules=QV, layers_to_transform=[1, 99]),
        r"layers_to_transform names 99.*saved so",
    ),
    "pattern": (
        lambda: peft.LoraConfig(
            r=2, target_modules=QV, layers_to_transform=[1], layers_pattern=["h", "layers"]
        ),
        r"layers_pattern: .* called 'h'.*saved so",
    ),
    "exclusion": (
        lambda: peft.LoraConfig(r=2, target_modules=QV, exclude_modules=["qkv"]),
        r"exclude_modules names 'qkv'.*saved so",
    ),
    "saved-module": (
        lambda: peft.LoraConfig(r=2, target_modules=QV, modules_to_save=["score"]),
        r"modules_to_save names \['score'\].*saved so",
    ),
    "feedforward": (
        lambda: peft.IA3Config(target_modules=r".*(k_proj|down_proj)", feedforward_modules=["fc2"]),
        r"feedforward_modules: 'fc2' names none.*saved so",
    ),
    "vera": (
        lambda: peft.VeraConfig(r=2, target_modules=["q_proj", "qkv"]),
        r"Target modules \['qkv'\] not found.*saved so",
    ),
}


@pytest.mark.parametrize("name", SAVED)
def test_a_leftover_in_an_adapter_that_peft_wrote_is_named_and_the_adapter_loads(
    name: str, tmp_path: Path
) -> None:
    config, message = SAVED[name]
    directory = written(tmp_path, LLAMA.build, config())
    with pytest.warns(PeftWarning, match=message):
        mine = PeftModel.from_pretrained(LLAMA.build(), directory)
    with silent():
        theirs = peft.PeftModel.from_pretrained(LLAMA.build(), str(directory))
    ids = LLAMA.inputs()["input_ids"]
    torch.testing.assert_close(mine(input_ids=ids).logits, theirs(input_ids=ids).logits)
    with pytest.warns(PeftWarning, match=message):
        mine.load_adapter(directory, "again")


def test_a_leftover_is_fine_with_options_that_are_passed_along(tmp_path: Path) -> None:
    directory = written(tmp_path, LLAMA.build, peft.LoraConfig(r=2, target_modules=QV))
    with pytest.warns(PeftWarning, match=r"Target modules \['qkv'\]"):
        PeftModel.from_pretrained(LLAMA.build(), directory, config=lora(target_modules=[*QV, "qkv"]))


def test_nothing_but_leftovers_is_an_error(tmp_path: Path) -> None:
    directory = written(tmp_path, LLAMA.build, peft.LoraConfig(r=2, target_modules=QV))
    with pytest.raises(NoMatchingPeftModuleError, match="not found in the base model"):
        PeftModel.from_pretrained(T5.build(), directory)


def test_a_saved_adapters_options_are_strict_for_whoever_writes_them_anew(tmp_path: Path) -> None:
    directory = written(tmp_path, LLAMA.build, peft.LoraConfig(r=2, target_modules=["q_proj", "qkv"]))
    assert PeftConfig.from_pretrained(directory).was_saved
    assert "was_saved" not in json.loads(PeftConfig.from_pretrained(directory).to_json())
    assert not lora().was_saved


def test_targets_from_tensors_leave_a_patterns_other_keys_over() -> None:
    tensors = {f"layers.0.q.lora_{x}.weight": torch.zeros(1) for x in "AB"}
    config = LoraConfig(target_modules=["q"], rank_pattern={"layers.1.q": 4})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        inject_adapter_in_model(config, Net(), state_dict=tensors)
    assert any(re.search(r"rank_pattern\['layers\.1\.q'\] has no effect", str(w.message)) for w in caught)
