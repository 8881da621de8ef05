"""A method that says the least it can: what it can't do is refused in words, and all else works."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from tests.methods import test_registry_contract as contract
from tests.methods.tiny_models import LLAMA, Family
from torch import Tensor, nn

from manytune.errors import ConfigError, StoreError
from manytune.methods import registry
from manytune.methods.config import PeftConfig
from manytune.methods.registry import Method, peft_config_from, register
from manytune.methods.tuners.adapter_layer import AdapterLayer
from manytune.methods.tuners.layer_tuner import LayerTuner
from manytune.methods.tuners.targets import Selection, all_linear_targets, select
from manytune.methods.tuners.terms import TermsError
from manytune.methods.tuners.unsupported import NotInLayersError
from manytune.model.attach import get_peft_model
from manytune.store.export_gguf import export_gguf
from manytune.store.exports import export_peft, export_vllm


@dataclass
class ShiftConfig(PeftConfig):
    """Adds a trained vector to the output of every linear layer."""

    target_modules: list[str] | set[str] | str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = "SHIFT"


class ShiftLayer(AdapterLayer):
    adapter_layer_names: ClassVar[tuple[str, ...]] = ("shift",)

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.shift = nn.ParameterDict()

    def tensors(self, adapter_name: str) -> dict[str, nn.Parameter]:
        return {"shift": self.shift[adapter_name]} if adapter_name in self.shift else {}

    def merged_tensors(self, adapter_names: Sequence[str]) -> dict[str, Tensor]:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.base_layer(x)
        for name in self.live_adapters():
            result = result + self.shift[name]
        return result


class ShiftModel(LayerTuner):
    prefix: ClassVar[str] = "shift"

    def select(self, config: Any) -> list[tuple[str, nn.Module]]:
        config.target_modules = config.target_modules or all_linear_targets(self.model)
        return select(self.model, Selection(config.target_modules))

    def wrap(self, path: str, module: nn.Module, config: Any) -> AdapterLayer:
        return ShiftLayer(module)

    def add_to_layer(self, layer: AdapterLayer, path: str, adapter_name: str, config: Any) -> None:
        assert isinstance(layer, ShiftLayer)
        size = layer.base_layer.get_parameter("weight").shape[0]
        layer.shift[adapter_name] = nn.Parameter(torch.zeros(size))


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_METHODS", registry.methods())
    register(Method("shift", "SHIFT", ShiftConfig, ShiftModel))


@pytest.mark.usefixtures("registered")
def test_the_contract_tests_pick_it_up() -> None:
    assert {case.family for case in contract.cases() if case.method == "shift"} == set(contract.FAMILIES)


@pytest.mark.usefixtures("registered")
def test_a_recipe_can_name_it() -> None:
    assert isinstance(peft_config_from("shift", target_modules=["q_proj"]), ShiftConfig)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("family", [LLAMA], ids=str)
def test_it_keeps_the_contract(family: Family, tmp_path: Path) -> None:
    case = contract.Case("shift", family)
    contract.require_contract(case, tmp_path)


@pytest.mark.usefixtures("registered")
def test_repr_and_status_name_its_layers_by_their_class() -> None:
    case = contract.Case("shift", LLAMA)
    model = case.attach(case.base())
    layer = model.get_layer_status()[0]
    assert layer.module_type == "ShiftLayer"
    assert repr(model.get_base_model().get_submodule(layer.name.removeprefix("model."))).startswith(
        "ShiftLayer("
    )
    assert model.get_model_status().adapter_model_type == "ShiftModel"


@pytest.mark.usefixtures("registered")
def test_what_it_does_not_say_is_refused_in_words(tmp_path: Path) -> None:
    case = contract.Case("shift", LLAMA)
    model: Any = case.attach(case.base()).eval()
    with pytest.raises(TermsError, match=r"ShiftLayer doesn't state its terms\. Use it attached"):
        model.tuner.live_terms("default")
    with pytest.raises(
        NotInLayersError, match=r"ShiftModel has no arithmetic .* doesn't say how they add up"
    ):
        model.add_weighted_adapter(["default"], [1.0], "sum")
    with pytest.raises(ConfigError, match="'SHIFT' is not compatible with the `PeftMixedModel`"):
        get_peft_model(case.base(), case.config(), mixed=True)
    model.save_pretrained(tmp_path / "a")
    with pytest.raises(StoreError, match="HF PEFT has no method SHIFT"):
        export_peft(tmp_path / "a", tmp_path / "out")
    with pytest.raises(StoreError, match="vLLM runs plain LoRA adapters only, and it is of type SHIFT"):
        export_vllm({"a": tmp_path / "a"}, tmp_path / "out")
    with pytest.raises(StoreError, match="doesn't state its terms"):
        export_gguf(tmp_path / "a", tmp_path / "a.gguf", model.config)


@pytest.mark.usefixtures("registered")
def test_samples_with_adapters_of_their_own_run_layer_by_layer_and_switching_works() -> None:
    case = contract.Case("shift", LLAMA)
    model: Any = case.attach(case.base())
    contract.disturb(model)
    model.eval()
    inputs = {name: torch.cat([tensor[:1]] * 2) for name, tensor in LLAMA.inputs().items()}
    with torch.no_grad():
        both = model(**inputs, adapter_names=["default", "__base__"]).logits
        torch.testing.assert_close(both[0], model(**inputs).logits[0])
        with model.using("__base__"):
            torch.testing.assert_close(both[1], model(**inputs).logits[1])
    assert not torch.allclose(both[0], both[1])
