"""Selective fine-tuning against a plain loop over the same parameters."""

from __future__ import annotations

import pytest
import torch
from tests.methods.tiny_models import BERT, GPT2, LLAMA, T5, Family
from torch import nn

from manytune import ConfigError, NoMatchingPeftModuleError, SelectiveConfig, get_peft_model


def chosen(family: Family, parameters: object, **options: object) -> set[str]:
    model = get_peft_model(family.build(), SelectiveConfig(parameters=parameters, **options))  # type: ignore[arg-type]
    return {n.removeprefix("base_model.model.") for n, p in model.named_parameters() if p.requires_grad}


def names(family: Family) -> list[str]:
    return [name for name, _ in family.build().named_parameters()]


@pytest.mark.parametrize("family", [GPT2, BERT], ids=str)
def test_bias_is_every_bias(family: Family) -> None:
    assert chosen(family, "bias") == {name for name in names(family) if name.endswith(".bias")}


@pytest.mark.parametrize(
    ("family", "marks"),
    [(LLAMA, ("norm",)), (GPT2, ("ln_",)), (T5, ("layer_norm",)), (BERT, ("LayerNorm",))],
    ids=str,
)
def test_layernorm_is_every_normalisation_layer(family: Family, marks: tuple[str, ...]) -> None:
    assert chosen(family, "layernorm") == {n for n in names(family) if any(mark in n for mark in marks)}


def test_a_list_names_parameters_components_and_layers() -> None:
    found = chosen(LLAMA, ["q_proj.weight", "layers.1.mlp", "layernorm"])
    expected = {
        n for n in names(LLAMA) if "q_proj" in n or n.startswith("model.layers.1.mlp.") or "norm" in n
    }
    assert found == expected


def test_another_string_is_an_expression_for_whole_names() -> None:
    assert chosen(LLAMA, r".*layers\.0\..*v_proj\.weight") == {"model.layers.0.self_attn.v_proj.weight"}


def test_layers_narrow_the_selection_down() -> None:
    found = chosen(GPT2, "bias", layers_to_transform=[1])
    assert found == {n for n in names(GPT2) if n.endswith(".bias") and ".h.1." in n}


def test_a_task_adds_its_head_and_modules_to_save_add_theirs() -> None:
    found = chosen(BERT, "layernorm", task_type="SEQ_CLS", modules_to_save=["pooler"])
    assert {"classifier.weight", "bert.pooler.dense.weight"} <= found


def train(model: nn.Module, family: Family) -> None:
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        model(**family.inputs()).loss.backward()
        optimizer.step()


@pytest.mark.parametrize("family", [LLAMA, T5], ids=str)
def test_it_is_training_those_parameters_and_freezing_the_rest(family: Family) -> None:
    twin = family.build()
    for name, parameter in twin.named_parameters():
        parameter.requires_grad_("norm" in name)
    model = get_peft_model(family.build(), SelectiveConfig(parameters="layernorm"))
    train(twin, family)
    train(model, family)
    trained = model.merge_and_unload().state_dict()
    assert all(torch.equal(trained[name], tensor) for name, tensor in twin.state_dict().items())


def test_a_file_holds_full_values_of_the_selected_tensors_only() -> None:
    model = get_peft_model(LLAMA.build(), SelectiveConfig(parameters=["k_proj"]))
    state = model.base_model.state("default")
    assert {name: tuple(t.shape) for name, t in state.items()} == {
        f"model.layers.{i}.self_attn.k_proj.weight": (16, 32) for i in (0, 1)
    }


@pytest.mark.parametrize("entry", ["bias", "q_prj", r"layers\.\d"])
def test_an_entry_that_names_nothing_is_refused(entry: str) -> None:
    with pytest.raises(
        NoMatchingPeftModuleError, match=r"names no parameter of the model.*embed_tokens.weight"
    ):
        chosen(LLAMA, ["layernorm", entry])


def test_layers_that_leave_nothing_are_refused() -> None:
    with pytest.raises(NoMatchingPeftModuleError, match=r"none of them in layers_to_transform=\[7\]"):
        chosen(LLAMA, "layernorm", layers_to_transform=[7])


def test_an_empty_selection_is_refused() -> None:
    with pytest.raises(ConfigError, match="is empty: name the parameters"):
        SelectiveConfig(parameters=[])


def test_a_pattern_for_layers_needs_layers() -> None:
    with pytest.raises(ConfigError, match="`layers_to_transform` must also be specified"):
        SelectiveConfig(layers_pattern="layers")
