"""What LoRA on parameters states in terms: from files and from attached adapters, and what has none."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.methods.lora.test_parameters import ours, scatter
from tests.methods.tiny_models import GPT2, LLAMA, Family
from tests.methods.tiny_moe import MIXTURES, QWEN3, Mixture
from tests.reference.mixed_experts import added, transposed
from torch import Tensor, nn

import manytune
from manytune import LoraConfig, PeftModel
from manytune.methods.config import PeftConfig
from manytune.methods.registry import method_of
from manytune.methods.tuners.terms import Terms, TermsError


def by_weights(mixture: Mixture, terms: Terms) -> dict[str, Tensor]:
    """What the terms add to each parameter of the base."""
    model = mixture.build()
    parameters = dict(model.named_parameters())
    deltas = {}
    for path, update in terms.parameters.items():
        layer = model.get_submodule(path.rpartition(".")[0])
        deltas[path] = added(update, transposed=transposed(layer, parameters[path]))
    for path, update in terms.updates.items():
        assert update.down is not None
        deltas[f"{path}.weight"] = update.scaling * update.up @ update.down
    return deltas


def merged(model: PeftModel, mixture: Mixture) -> dict[str, Tensor]:
    """The same, by merging: the parameters that merging changed."""
    plain = mixture.build().double().state_dict()
    whole = copy.deepcopy(model).double().merge_and_unload().state_dict()
    return {name: whole[name] - plain[name] for name in plain if not torch.equal(whole[name], plain[name])}


@pytest.mark.parametrize("mixture", MIXTURES, ids=str)
@pytest.mark.parametrize("form", ["attached", "file"])
def test_terms_are_what_merging_adds_to_the_weights(mixture: Mixture, form: str, tmp_path: Path) -> None:
    model = ours(mixture, rank_pattern={"down_proj": 5}, use_rslora=True)
    if form == "attached":
        terms = model.tuner.live_terms("default")
    else:
        model.save_pretrained(tmp_path)
        terms = of_file(tmp_path, mixture.build())
    expected, found = merged(model, mixture), by_weights(mixture, terms)
    assert found.keys() == expected.keys() and len(terms.parameters) >= 3
    for name, delta in expected.items():
        torch.testing.assert_close(found[name].double(), delta, rtol=1e-5, atol=1e-6, msg=name)


def of_file(directory: Path, model: nn.Module) -> Terms:
    config: Any = PeftConfig.from_pretrained(directory)
    return method_of(config).tuner.terms(config, load_file(directory / "adapter_model.safetensors"), model)


def test_terms_of_a_file_are_the_same_while_other_adapters_are_attached(tmp_path: Path) -> None:
    ours(QWEN3).save_pretrained(tmp_path)
    other = LoraConfig(r=3, target_modules=["q_proj"], target_parameters=["experts.down_proj"])
    busy = manytune.get_peft_model(QWEN3.build(), other)
    found, expected = of_file(tmp_path, busy.get_base_model()), of_file(tmp_path, QWEN3.build())  # type: ignore[operator]
    assert found.parameters.keys() == expected.parameters.keys()
    assert all(
        torch.equal(found.parameters[path].down, one.down) for path, one in expected.parameters.items()
    )


def test_an_adapter_of_parameters_alone_and_a_trained_head_has_terms(tmp_path: Path) -> None:
    options = {
        "target_modules": [],
        "target_parameters": ["experts.down_proj"],
        "modules_to_save": ["lm_head"],
    }
    model = manytune.get_peft_model(QWEN3.build(), LoraConfig(**options))
    scatter(model)
    model.save_pretrained(tmp_path)
    terms = of_file(tmp_path, QWEN3.build())
    assert set(terms.updates) == {"lm_head"} and len(terms.parameters) == 2


@pytest.mark.parametrize(
    ("family", "named"),
    [(LLAMA, "q_proj.weight"), (LLAMA, "embed_tokens.weight"), (GPT2, "c_attn.weight")],
    ids=["linear", "embedding", "conv1d"],
)
def test_weights_of_ordinary_layers_have_terms_when_they_are_named_as_parameters(
    family: Family, named: str
) -> None:
    options = {"target_modules": [], "target_parameters": [named], "r": 2}
    model = manytune.get_peft_model(family.build().double(), LoraConfig(**options)).eval()
    scatter(model)
    ids = torch.randint(3, 40, (2, 5), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        alone = model(input_ids=ids[:1]).logits
        mixed = model(input_ids=ids, adapter_names=["default", "__base__"]).logits
        with model.disable_adapter():
            plain = model(input_ids=ids[1:]).logits
    torch.testing.assert_close(mixed, torch.cat((alone, plain)), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(mixed[1], alone[0])


def test_a_tensor_that_is_missing_or_does_not_fit_is_named(tmp_path: Path) -> None:
    model = ours(QWEN3)
    model.save_pretrained(tmp_path)
    config: Any = PeftConfig.from_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    tuner = method_of(config).tuner
    where = "base_model.model.model.layers.1.mlp.experts.base_layer.lora_"
    lacking = {name: tensor for name, tensor in tensors.items() if not name.startswith(where)}
    with pytest.raises(TermsError, match=rf"expected {where}A\.weight, for .*experts\.gate_up_proj"):
        tuner.terms(config, lacking, QWEN3.build())
    config.rank_pattern = {"gate_up_proj": 3}
    with pytest.raises(
        TermsError, match=r"lora_A.weight for gate_up_proj has shape \(8, 16\), expected \(12, 16\)"
    ):
        tuner.terms(config, tensors, QWEN3.build())


class Scaled(nn.Module):
    """A layer that multiplies by a matrix in a way of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix


def test_a_layer_of_an_unknown_kind_has_no_terms_and_says_so() -> None:
    config = LoraConfig(target_modules=[], target_parameters=["scaled.matrix"])
    model = manytune.get_peft_model(nn.ModuleDict({"scaled": Scaled(), "head": nn.Linear(4, 2)}), config)
    with pytest.raises(TermsError, match=r"adapts scaled\.matrix \(Scaled\).*has no terms\. Use it attached"):
        model.tuner.live_terms("default")


def test_a_file_from_before_the_grouping_says_how_to_bring_it_up_to_date() -> None:
    config = LoraConfig(r=2, target_modules=["gate_proj", "up_proj", "down_proj"]).as_saved()
    where = "base_model.model.model.layers.0.mlp.experts.0.down_proj.lora_"
    tensors = {f"{where}A.weight": torch.ones(2, 24), f"{where}B.weight": torch.ones(16, 2)}
    with pytest.raises(
        TermsError, match=r"factors of single experts .*save it with save_pretrained, and use that"
    ):
        method_of(config).tuner.terms(config, tensors, QWEN3.build())
