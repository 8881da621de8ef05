"""Which modules a configuration names, and the errors when it names none."""

from __future__ import annotations

import re
import warnings
from typing import Any

import peft
import pytest
import torch
from tests.methods.lora.compared_with_peft import Net, quiet
from tests.methods.tiny_models import BERT, FAMILIES, GPT2, LLAMA, T5, Family
from torch import nn

import manytune
from manytune import (
    AdapterError,
    ConfigError,
    LoraConfig,
    NoMatchingPeftModuleError,
    PeftModel,
    get_peft_model,
)
from manytune.methods.tuners.targets import adapter_layers, layer_index, matches


def adapted(model: nn.Module, **options: Any) -> list[str]:
    """The paths in the base of the layers that carry the adapter."""
    attached = get_peft_model(model, LoraConfig(**options))
    return [path for path, _ in adapter_layers(attached.get_base_model())]


class Experts(nn.Module):
    """Layers that hold numbered experts, as mixtures of experts do, and one numbered with leading zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {"experts": nn.ModuleList(nn.Linear(2, 2) for _ in range(3)), "out": nn.Linear(2, 2)}
            )
            for _ in range(2)
        )
        self.padded = nn.ModuleDict({"001": nn.ModuleDict({"out": nn.Linear(2, 2)})})


# -- a string, a list, all-linear, nothing


def test_a_string_is_an_expression_for_the_whole_path() -> None:
    assert adapted(Net(), target_modules=r"layers\.[01]\.q") == ["layers.0.q", "layers.1.q"]
    assert adapted(Net(), target_modules="head") == ["head"]
    with pytest.raises(NoMatchingPeftModuleError, match="the expression must match a module's whole path"):
        adapted(Net(), target_modules=r"\.q")


def test_a_list_holds_paths_and_path_endings() -> None:
    assert adapted(Net(), target_modules=["q"]) == ["layers.0.q", "layers.1.q"]
    assert adapted(Net(), target_modules=["0.q", "head"]) == ["layers.0.q", "head"]
    assert adapted(Net(), target_modules=["layers.1.v"]) == ["layers.1.v"]


def test_an_ending_starts_at_a_dot() -> None:
    assert not matches("layers.0.xq", ["q"])
    assert matches("layers.0.q", ["0.q"]) and not matches("layers.10.q", ["0.q"])
    assert matches("q", ["q"]) and not matches("q.proj", ["q"])
    with pytest.raises(NoMatchingPeftModuleError):
        adapted(Net(), target_modules=["ead"])


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_nothing_means_pefts_default_for_the_architecture(family: Family) -> None:
    with quiet():
        theirs = peft.get_peft_model(family.build(), peft.LoraConfig(task_type=family.task_type))
    expected = [
        n for n, m in theirs.get_base_model().named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)
    ]
    assert adapted(family.build(), task_type=family.task_type) == expected
    # And by name, from the architectures' papers.
    endings = {
        "llama": {"q_proj", "v_proj"},
        "gpt2": {"c_attn"},
        "t5": {"q", "v"},
        "bert": {"query", "value"},
    }
    assert {name.rsplit(".", 1)[1] for name in expected} == endings[family.name]


def test_without_a_default_the_error_lists_the_linear_layers() -> None:
    message = r"Please specify `target_modules` .* model type None.* linear layers are: c1, head, q, v\."
    with pytest.raises(ValueError, match=message):
        adapted(Net())


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_all_linear_is_every_linear_layer_but_the_head(family: Family) -> None:
    with quiet():
        config = peft.LoraConfig(task_type=family.task_type, target_modules="all-linear")
        theirs = peft.get_peft_model(family.build(), config)
    expected = [
        n for n, m in theirs.get_base_model().named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)
    ]
    found = adapted(family.build(), task_type=family.task_type, target_modules="all-linear")
    assert found == expected
    assert not {"lm_head", "classifier"} & set(found)


def test_all_linear_takes_conv1d_and_a_plain_modules_layers() -> None:
    assert adapted(Net(), target_modules="all-linear") == [
        "layers.0.q",
        "layers.0.v",
        "layers.1.q",
        "layers.1.v",
        "c1",
        "head",
    ]
    assert any(path.endswith("c_attn") for path in adapted(GPT2.build(), target_modules="all-linear"))
    with pytest.raises(NoMatchingPeftModuleError, match="the model has no linear layers"):
        adapted(nn.Sequential(nn.Embedding(3, 3)), target_modules="all-linear")


def test_all_linear_is_expanded_in_the_configuration() -> None:
    config = LoraConfig(target_modules="all-linear")
    get_peft_model(LLAMA.build(), config)
    assert config.target_modules == {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    }


def test_the_default_is_filled_in_in_the_users_own_configuration() -> None:
    config = LoraConfig()
    model = get_peft_model(LLAMA.build(), config)
    assert config.target_modules == {"q_proj", "v_proj"}
    assert model.peft_config["default"] is config


# -- leaving out


def test_excluded_modules_are_left_out() -> None:
    assert adapted(Net(), target_modules=["q", "v"], exclude_modules=["layers.1.q"]) == [
        "layers.0.q",
        "layers.0.v",
        "layers.1.v",
    ]
    assert adapted(Net(), target_modules=["q", "v"], exclude_modules=r"layers\.0\..*") == [
        "layers.1.q",
        "layers.1.v",
    ]
    assert adapted(Net(), target_modules=["q", "v"], exclude_modules=["v"]) == ["layers.0.q", "layers.1.q"]


def test_an_exclusion_that_hits_nothing_warns() -> None:
    with pytest.warns(
        UserWarning, match=r"You have passed exclude_modules=\['head'\] but no modules were excluded"
    ):
        assert adapted(Net(), target_modules=["q"], exclude_modules=["head"]) == ["layers.0.q", "layers.1.q"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"target_modules": ["q"], "exclude_modules": ["q"]},
            r"All modules were excluded: target_modules=\['q'\] names 2 modules, and exclude_modules=\['q'\]",
        ),
        (
            {"target_modules": r".*\.nothing"},
            r"Target modules '\.\*\\\\\.nothing' not found in the base model: the expression must match",
        ),
        (
            {"target_modules": ["q"], "exclude_modules": ["layers.0.q"], "layers_to_transform": [0]},
            r"No modules were targeted for adaptation: target_modules=\['q'\] names 2 modules, of which "
            r"exclude_modules=\['layers\.0\.q'\] leaves out 1 and layers_to_transform=\[0\] the rest",
        ),
        (
            {"target_modules": ["q"], "layers_to_transform": [7], "layers_pattern": "layers"},
            r"layers_to_transform=\[7\], layers_pattern=\['layers'\] the rest.*not found in the base model",
        ),
        ({"target_modules": []}, "No modules were targeted for adaptation: target_modules is empty"),
        (
            {"target_modules": ["q", "heat"]},
            r"Target modules \['heat'\] not found in the base model\. Did you mean 'head'\?",
        ),
        (
            {"target_modules": ["zzz", "q", "yyy"]},
            r"Target modules \['yyy', 'zzz'\] not found in the base model\. The model's modules end in: c1, emb, head",
        ),
        ({"target_modules": "layers.0.qq"}, r"Did you mean 'q'\?"),
        (
            {"target_modules": ["layers"]},
            r"Target module layers \(ModuleList\) is not supported\. LoRA is for",
        ),
        (
            {"target_modules": ["head", "q"], "modules_to_save": ["head", "q"]},
            "No modules were targeted for adaptation: every module that target_modules names is also in modules",
        ),
    ],
)
def test_naming_nothing_is_an_error_that_says_what_to_do(options: dict[str, Any], message: str) -> None:
    base = Net()
    before = repr(base)
    with pytest.raises(ValueError, match=message):
        get_peft_model(base, LoraConfig(**options))
    assert repr(base) == before
    assert all(parameter.requires_grad for parameter in base.parameters())


def test_what_matches_nothing_has_pefts_error_type() -> None:
    for options in (
        {"target_modules": ["zzz"]},
        {"target_modules": []},
        {"target_modules": ["q"], "exclude_modules": "q|.*"},
    ):
        with pytest.raises(NoMatchingPeftModuleError):
            adapted(Net(), **options)


def test_a_later_adapter_that_matches_nothing_is_refused_and_leaves_nothing() -> None:
    model = get_peft_model(Net(), LoraConfig(target_modules=["q"]))
    before = repr(model), list(model.state_dict())
    for targets in (["zzz"], ["q", "zzz"], "zzz", ["layers"]):
        with pytest.raises(ValueError, match=r"not found in the base model|not supported"):
            model.add_adapter("second", LoraConfig(target_modules=targets))
        assert (repr(model), list(model.state_dict())) == before
        assert list(model.peft_config) == ["default"]


# -- layers


@pytest.mark.parametrize(
    ("path", "patterns", "index"),
    [
        ("model.layers.3.self_attn.q_proj", [], 3),
        ("model.layers.12.mlp.experts.5.up", [], 12),
        ("model.layers.12.mlp.experts.5.up", ["experts"], 5),
        ("model.layers.12.mlp.experts.5.up", ["layers"], 12),
        ("model.layers.001.q", [], 1),
        ("model.layers.001.q", ["layers"], 1),
        ("transformer.h.4.attn", ["layers", "h"], 4),
        ("encoder.block.2.layer.0.q", ["block"], 2),
        ("encoder.block.2.layer.0.q", ["layer"], 0),
        ("encoder.sublayer.2.q", ["missing"], None),
        ("lm_head", [], None),
        ("layer2.q", [], None),
    ],
)
def test_a_layers_index_follows_the_pattern_or_is_the_first_number(
    path: str, patterns: list[str], index: int | None
) -> None:
    assert layer_index(path, patterns) == index


def test_layers_to_transform_counts_layers_and_not_experts() -> None:
    found = adapted(
        Experts(),
        target_modules=["0", "1", "2", "out"],
        layers_to_transform=[0],
        exclude_modules=["blocks.0"],
    )
    assert found == ["blocks.0.experts.0", "blocks.0.experts.1", "blocks.0.experts.2", "blocks.0.out"]
    assert adapted(Experts(), target_modules=["out"], layers_to_transform=1) == [
        "blocks.1.out",
        "padded.001.out",
    ]
    assert adapted(Experts(), target_modules=["out"], layers_to_transform=[1], layers_pattern=["padded"]) == [
        "padded.001.out"
    ]


@pytest.mark.parametrize("layers", [0, [0]])
def test_layer_zero_is_a_layer(layers: int | list[int]) -> None:
    assert adapted(Net(), target_modules=["q"], layers_to_transform=layers) == ["layers.0.q"]


# -- what is never targeted


def test_parts_of_adapter_layers_are_never_targeted() -> None:
    model = get_peft_model(Net(), LoraConfig(target_modules=["q"]))
    with pytest.raises(NoMatchingPeftModuleError, match="lora_A"):
        model.add_adapter("second", LoraConfig(target_modules=["lora_A"]))
    model.add_adapter("third", LoraConfig(target_modules="all-linear"))
    names = [name for name, _ in adapter_layers(model.get_base_model())]
    assert names == ["layers.0.q", "layers.0.v", "layers.1.q", "layers.1.v", "c1", "head"]


def test_insides_of_modules_to_save_are_never_targeted() -> None:
    model = get_peft_model(Net(), LoraConfig(target_modules=["q"], modules_to_save=["layers.1"]))
    assert [name for name, _ in adapter_layers(model.get_base_model())] == ["layers.0.q"]
    with pytest.raises(NoMatchingPeftModuleError):
        model.add_adapter("second", LoraConfig(target_modules=["layers.1.q"]))


@pytest.mark.parametrize("name", ["layers", "extra", "values", "listed"])
def test_a_container_can_not_be_saved_in_full(name: str) -> None:
    base = Net()
    base.extra = nn.ModuleDict({"a": nn.Linear(1, 1)})
    base.values = nn.ParameterDict({"a": torch.zeros(1)})
    base.listed = nn.ParameterList([torch.zeros(1)])
    before = repr(base)
    with pytest.raises(
        TypeError,
        match=f"modules_to_save cannot be applied to modules of type {type(getattr(base, name)).__name__}",
    ):
        get_peft_model(base, LoraConfig(target_modules=["c1"], modules_to_save=[name]))
    assert repr(base) == before


@pytest.mark.parametrize("library", [manytune, peft], ids=["manytune", "peft"])
def test_a_module_whose_name_ends_alike_trains_in_full_too(library: Any) -> None:
    base = Net()
    base.my_head = nn.Linear(1, 1)
    with quiet():
        model = library.get_peft_model(
            base, library.LoraConfig(target_modules=["q"], modules_to_save=["head"])
        )
    trained = {n.removeprefix("base_model.model.") for n, p in model.named_parameters() if p.requires_grad}
    assert {name.partition(".modules_to_save")[0] for name in trained if "lora" not in name} == {
        "head",
        "my_head",
    }


def test_a_classifiers_head_trains_in_full() -> None:
    model = get_peft_model(BERT.build(), LoraConfig(task_type="SEQ_CLS"))
    assert model.modules_to_save == {"classifier", "score"}
    trains = {n for n, p in model.named_parameters() if p.requires_grad and "lora_" not in n}
    assert trains == {
        f"base_model.model.classifier.modules_to_save.default.{part}" for part in ("weight", "bias")
    }


def test_trainable_parameters_are_exactly_the_adapters() -> None:
    model = get_peft_model(T5.build(), LoraConfig(task_type="SEQ_2_SEQ_LM"))
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == bool(re.search(r"\.(q|v)\.lora_[AB]\.default\.weight$", name)), name
    assert isinstance(model, PeftModel)


def test_a_base_that_already_carries_adapters_is_refused_and_not_after_unload() -> None:
    base = Net()
    model = get_peft_model(base, LoraConfig(target_modules=["q"]))
    before = repr(model)
    for again in (base, model):
        with pytest.raises(AdapterError, match=r"The base has adapters already .*add_adapter\(\)"):
            get_peft_model(again, LoraConfig(target_modules=["v"]), "other")
    assert repr(model) == before
    model.unload()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        get_peft_model(base, LoraConfig(target_modules=["q"]))


def test_options_for_layers_do_not_go_with_an_expression() -> None:
    for options in ({"layers_to_transform": [0]}, {"layers_pattern": "layers"}):
        with pytest.raises(ConfigError, match="cannot be used when `target_modules` is a str"):
            LoraConfig(target_modules=".*q", **options)
    with pytest.raises(ConfigError, match="`layers_to_transform` must also be specified"):
        LoraConfig(target_modules=["q"], layers_pattern="layers")
