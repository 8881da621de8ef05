"""What methods train, compared with the same methods attached to small models."""

import dataclasses
from typing import Any, Literal

import peft
import pytest
import torch
from tests.planner.configs import config_of, llama
from transformers import AutoModelForCausalLM

from manytune.errors import ConfigError, RecipeError
from manytune.methods.registry import methods, peft_config_from
from manytune.methods.tuners.sizes import MethodSizes, Trained, method_sizes, register_sizes
from manytune.model.accounting import count_parameters
from manytune.model.attach import get_peft_model
from manytune.planner.architecture import architecture_of
from manytune.planner.recipe import plan_from
from manytune.planner.trained import slot_numbers, trained_of


def planned(model: dict[str, Any], **method: Any) -> Trained:
    recipe = plan_from({"model": model, "method": method})
    return trained_of(recipe.method, architecture_of(model, where="model"))


METHODS: list[dict[str, Any]] = [
    {"name": "lora", "r": 3},
    {"name": "lora", "r": 4, "target_modules": "all-linear"},
    {"name": "lora", "r": 4, "use_dora": True},
    {"name": "adalora", "init_r": 3, "target_r": 2},
    {"name": "vera", "r": 8},
    {"name": "ia3"},
    {"name": "prompt-tuning", "num_virtual_tokens": 5},
    {"name": "prefix-tuning", "num_virtual_tokens": 5},
    {"name": "prefix-tuning", "num_virtual_tokens": 5, "prefix_projection": True},
    {"name": "p-tuning", "num_virtual_tokens": 5},
    {"name": "p-tuning", "num_virtual_tokens": 5, "encoder_hidden_size": 6},
    {"name": "bottleneck", "bottleneck_size": 6},
    {"name": "bottleneck", "bottleneck_size": 6, "style": "pfeiffer"},
    {"name": "full"},
]


@pytest.mark.parametrize(
    ("model_type", "method"),
    [
        (model_type, method)
        for model_type in ("llama", "phi3", "gpt2", "opt")
        for method in METHODS
        if (model_type, method["name"]) != ("phi3", "ia3")  # refused, below
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else value,
)
def test_as_many_numbers_train_as_with_the_method_attached(model_type: str, method: dict[str, Any]) -> None:
    config = config_of(model_type)
    options = {key: value for key, value in method.items() if key != "name"}
    if method["name"] == "adalora":
        options["total_step"] = 10
    model = AutoModelForCausalLM.from_config(config)
    if method["name"] == "full":
        expected = sum(parameter.numel() for parameter in model.parameters())
    else:
        adapted = get_peft_model(model, peft_config_from(method["name"], task_type="CAUSAL_LM", **options))
        expected = count_parameters(adapted)[0]
    assert planned(config.to_dict(), **method).parameters == expected


def test_every_method_that_states_its_sizes_is_compared() -> None:
    assert {method["name"] for method in METHODS} == set(method_sizes())


@pytest.mark.parametrize("name", method_sizes())
def test_options_are_called_and_preset_as_in_the_methods_config(name: str) -> None:
    """Where a config needs an option to be given, planning has a usual value."""
    method, sizes = methods()[name], method_sizes()[name]
    presets = {field.name: field.default for field in dataclasses.fields(method.config)}
    stated = {option: field.default for option, field in sizes.model_fields.items() if option != "name"}
    assert stated.keys() <= presets.keys()
    assert {key: value for key, value in stated.items() if presets[key] is not None} == {
        key: presets[key] for key in stated if presets[key] is not None
    }
    assert sizes.on_packed == method.on_packed


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_lora_is_what_hf_peft_counts() -> None:
    config = config_of("llama")
    with torch.device("meta"):
        model = peft.get_peft_model(
            AutoModelForCausalLM.from_config(config), peft.LoraConfig(r=4, target_modules="all-linear")
        )
    expected = model.get_nb_trainable_parameters()[0]
    found = planned(config.to_dict(), name="lora", r=4, target_modules="all-linear")
    assert found.parameters == found.added_weights == expected


def test_a_slot_holds_the_rank_that_it_is_rounded_up_to() -> None:
    found = planned(llama(), name="lora", r=5)
    sizes = (64 + 64) + (64 + 32)  # q and v
    assert found.kept == 4 * 5 * sizes and slot_numbers(found) == 4 * 8 * sizes


def test_inputs_are_kept_where_a_trained_product_reads_them() -> None:
    assert planned(llama(), name="lora").saved_inputs == {"attention"}
    every = planned(llama(), name="lora", target_modules="all-linear").saved_inputs
    assert every == {"attention", "heads", "mlp", "inner"}
    assert not planned(llama(), name="prompt-tuning").saved_inputs


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"name": "lorra"}, r"found 'lorra' \(text\); did you mean 'lora'\?"),
        ({"name": "ia3", "r": 8}, r"method\.r: there is no such key\. Known: name"),
        (
            {"name": ["lora"]},
            r"method\.name: planning knows the methods adalora, .*found \['lora'\] \(a list\)",
        ),
        ({"name": "other"}, r"trained_parameters: this key is missing\. Give how many numbers"),
        (
            {"name": "lora", "target_modules": ["q_porj"]},
            r"no linear layer 'q_porj'.*did you mean 'q_proj'\?",
        ),
        ({"name": "lora", "target_modules": "q_proj"}, "expected all-linear, or a list of names"),
        ({"name": "adalora", "init_r": 4}, "target_r=8 is above init_r=4"),
        ({"name": "lora", "r": 0}, "greater than or equal to 1"),
    ],
)
def test_a_method_that_cannot_be_planned_is_refused_in_a_sentence(
    method: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        planned(llama(), **method)


def test_ia3_needs_usual_modules() -> None:
    with pytest.raises(RecipeError, match="no usual modules for phi3"):
        planned(config_of("phi3").to_dict(), name="ia3")


def test_another_method_is_planned_by_its_trained_parameters() -> None:
    found = planned(llama(), name="other", trained_parameters=12_345)
    assert found.parameters == found.kept == 12_345


def test_sizes_that_say_nothing_are_refused_when_they_are_registered() -> None:
    class Unsaid(MethodSizes):
        name: Literal["unsaid"] = "unsaid"  # type: ignore[assignment]

    with pytest.raises(
        ConfigError, match=r"Unsaid: expected a class with a default for `name` and a method `tra"
    ):
        register_sizes(Unsaid)
    assert "unsaid" not in method_sizes()
