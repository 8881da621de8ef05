"""Weighted sums of adapters on grouped experts and routers, which HF PEFT doesn't have: against sums of ΔW."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.methods.lora.test_parameters import EXPERTS, ours
from tests.methods.tiny_moe import GPT_OSS, MIXTRAL, QWEN3, Mixture, logits
from torch import Tensor

import manytune
from manytune import ConfigError, LoraConfig, PeftModel
from manytune.methods.lora.parameters import ParamWrapper

WEIGHTS = [0.75, -0.5]


def two(mixture: Mixture, **second: object) -> PeftModel:
    """A model with two adapters, `default` and `second`."""
    model = ours(mixture)
    options = {
        "r": 2,
        "target_modules": ["o_proj"],
        "target_parameters": [*EXPERTS, mixture.router],
        **second,
    }
    model.add_adapter("second", LoraConfig(**options))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(5)
    for name, parameter in sorted(model.named_parameters()):
        if ".second." in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def deltas(model: PeftModel, name: str) -> dict[str, Tensor]:
    """ΔW of one adapter by parameter, as the layer keeps it."""
    return {
        f"{path}.{layer.parameter_name}": layer.get_delta_weight(name).detach()
        for path, layer in model.named_modules()
        if isinstance(layer, ParamWrapper) and layer.has_adapter(name)
    }


@pytest.mark.parametrize("mixture", [QWEN3, MIXTRAL, GPT_OSS], ids=str)
@pytest.mark.parametrize("kind", ["cat", "svd"])
def test_the_sums_that_are_exact_add_up_the_weights_deltas(mixture: Mixture, kind: str) -> None:
    model = two(mixture, r=3)
    model.add_weighted_adapter(["default", "second"], WEIGHTS, "sum", combination_type=kind, svd_rank=5)
    first, second, found = (deltas(model, name) for name in ("default", "second", "sum"))
    assert found.keys() == first.keys() == second.keys() and len(found) >= 6
    for path, delta in found.items():
        expected = WEIGHTS[0] * first[path] + WEIGHTS[1] * second[path]
        torch.testing.assert_close(delta, expected, rtol=1e-4, atol=1e-5, msg=path)


def test_a_linear_sum_is_the_sum_of_the_factors() -> None:
    """(Σ √wᵢ sᵢ Bᵢ)(Σ ±√wᵢ sᵢ Aᵢ), expert by expert."""
    model = two(QWEN3)
    model.add_weighted_adapter(["default", "second"], WEIGHTS, "sum", combination_type="linear")
    checked = 0
    for layer in model.modules():
        if not isinstance(layer, ParamWrapper):
            continue
        a, b = (
            [w.flatten() for w in own]
            for own in zip(*map(layer.of_experts, ("default", "second")), strict=True)
        )
        scales = [layer.scaling[name] for name in ("default", "second")]
        roots = [(abs(w) * s) ** 0.5 for w, s in zip(WEIGHTS, scales, strict=True)]
        found_a, found_b = layer.of_experts("sum")
        torch.testing.assert_close(found_a.flatten(), roots[0] * a[0] - roots[1] * a[1])
        torch.testing.assert_close(found_b.flatten(), roots[0] * b[0] + roots[1] * b[1])
        checked += 1
    assert checked == 6


def test_a_sum_of_adapters_on_different_parameters_has_both() -> None:
    model = two(QWEN3, target_modules=[], target_parameters=["experts.down_proj"])
    model.add_weighted_adapter(["default", "second"], WEIGHTS, "sum", combination_type="cat")
    first, second, found = (deltas(model, name) for name in ("default", "second", "sum"))
    assert found.keys() == first.keys() > second.keys()
    for path, delta in found.items():
        expected = WEIGHTS[0] * first[path] + WEIGHTS[1] * second.get(path, torch.zeros(()))
        torch.testing.assert_close(delta, expected, rtol=1e-4, atol=1e-5, msg=path)


@pytest.mark.parametrize("kind", ["ties", "dare_linear", "magnitude_prune"])
def test_pruning_kinds_give_factors_of_the_same_sizes(kind: str) -> None:
    model = two(QWEN3)
    torch.manual_seed(0)
    model.add_weighted_adapter(["default", "second"], [1.0, 1.0], "sum", combination_type=kind, density=0.5)
    assert deltas(model, "sum").keys() == deltas(model, "default").keys()
    assert all(delta.abs().sum() > 0 for delta in deltas(model, "sum").values())


def test_a_sum_is_saved_and_loads_to_the_same_output(tmp_path: Path) -> None:
    model = two(QWEN3, r=3)
    model.add_weighted_adapter(["default", "second"], WEIGHTS, "sum", combination_type="cat")
    model.set_adapter("sum")
    expected = logits(model).detach()
    model.save_pretrained(tmp_path, selected_adapters=["sum"])
    loaded = PeftModel.from_pretrained(QWEN3.build(), tmp_path / "sum", strict=True)
    torch.testing.assert_close(logits(loaded).detach(), expected, rtol=0, atol=0)
    assert not torch.allclose(expected, logits(QWEN3.build()).detach())


def test_unequal_ranks_have_no_linear_sum_and_the_parameter_is_named() -> None:
    model = two(QWEN3, rank_pattern={"down_proj": 4})
    with pytest.raises(
        ConfigError, match=r"All adapters must have the same r value.*'default': 2, 'second': 4"
    ):
        model.add_weighted_adapter(["default", "second"], WEIGHTS, "sum", combination_type="linear")


def test_all_linear_adapters_of_a_mixture_add_up() -> None:
    with pytest.warns(manytune.PeftWarning, match="leaves"):
        model = manytune.get_peft_model(QWEN3.build(), LoraConfig(r=2, target_modules="all-linear"))
    model.add_weighted_adapter(["default"], [2.0], "sum", combination_type="cat")
    assert deltas(model, "sum").keys() == deltas(model, "default").keys()
