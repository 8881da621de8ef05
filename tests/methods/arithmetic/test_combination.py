"""New adapters from others: HF PEFT's combinations number for number, and what closed forms say of them."""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
import torch
from tests.methods.lora.compared_with_peft import Net, quiet
from tests.methods.tiny_models import GPT2, LLAMA
from torch import Tensor, nn

import manytune
from manytune import AdapterError, ConfigError, LoraConfig, get_peft_model
from manytune.methods.arithmetic.combination import COMBINATIONS
from manytune.methods.arithmetic.pruning import agreeing_mean, at_random, largest
from manytune.methods.registry import peft_config_from

TARGETS = ["q", "v", "emb", "c1"]
IDS = torch.randint(0, 11, (3, 4), generator=torch.Generator().manual_seed(2))


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wide, self.narrow = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.narrow(torch.tanh(self.wide(x)))
        return result


def attach(library: Any, base: nn.Module, ranks: tuple[int, int], **options: Any) -> Any:
    """Two adapters, of random values that are equal in both libraries."""
    with quiet():
        model = library.get_peft_model(copy.deepcopy(base), library.LoraConfig(r=ranks[0], **options))
        model.add_adapter("second", library.LoraConfig(r=ranks[1], **{**options, "lora_alpha": 5}))
    generator = torch.Generator().manual_seed(4)
    for name, parameter in sorted(model.named_parameters()):
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model.eval()


def both(
    kind: str, weights: tuple[float, float], base: nn.Module, targets: Any, ranks: tuple[int, int], **how: Any
) -> tuple[Any, Any]:
    models = []
    for library in (manytune, peft):
        model = attach(library, base, ranks, target_modules=targets)
        torch.manual_seed(9)
        with quiet():
            model.add_weighted_adapter(["default", "second"], list(weights), "new", kind, **how)
            model.set_adapter("new")
        models.append(model)
    return models[0], models[1]


@pytest.mark.parametrize("weights", [(0.7, 0.4), (1.3, -0.8), (0.0, 1.0)], ids=str)
@pytest.mark.parametrize("kind", COMBINATIONS)
def test_every_combination_gives_pefts_numbers(kind: str, weights: tuple[float, float]) -> None:
    how = {} if kind in ("svd", "linear", "cat") else {"density": 0.6}
    mine, theirs = both(kind, weights, Net().double(), TARGETS, (4, 4), **how)
    torch.testing.assert_close(mine(IDS), theirs(IDS), rtol=1e-5, atol=1e-5)  # its weights are float32
    assert mine.peft_config["new"].r == theirs.peft_config["new"].r
    assert mine.peft_config["new"].target_modules == theirs.peft_config["new"].target_modules


@pytest.mark.parametrize("kind", ["svd", "linear", "cat", "ties_svd"])
def test_convolutions_are_combined_as_in_peft(kind: str) -> None:
    how = {"density": 0.5} if kind == "ties_svd" else {}
    mine, theirs = both(kind, (0.5, -2.0), Convolutions().double(), ["wide", "narrow"], (2, 2), **how)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(mine(x), theirs(x), rtol=1e-5, atol=1e-5)  # its weights are float32


@pytest.mark.parametrize(
    "options", [{"svd_rank": 2}, {"svd_clamp": 0.9}, {"svd_full_matrices": False}], ids=str
)
def test_the_options_of_svd_are_pefts(options: dict[str, Any]) -> None:
    mine, theirs = both("svd", (1.0, 0.5), Net().double(), TARGETS, (3, 4), **options)
    torch.testing.assert_close(mine(IDS), theirs(IDS), rtol=1e-5, atol=1e-5)  # its weights are float32


@pytest.mark.parametrize("sign", ["total", "frequency"])
def test_both_ways_to_elect_signs_are_pefts(sign: str) -> None:
    mine, theirs = both(
        "ties", (1.0, 3.0), Net().double(), TARGETS, (4, 4), density=0.8, majority_sign_method=sign
    )
    torch.testing.assert_close(mine(IDS), theirs(IDS), rtol=1e-5, atol=1e-5)  # its weights are float32


def deltas(model: Any, name: str) -> list[Tensor]:
    return [layer.get_delta_weight(name) for layer in model.tuner._layers.values() if layer.has_adapter(name)]


def test_concatenation_is_the_exact_sum_at_different_ranks() -> None:
    model = attach(manytune, Net().double(), (3, 5), target_modules=TARGETS)
    model.add_weighted_adapter(["default", "second"], [0.3, -1.5], "new", "cat")
    for a, b, new in zip(*(deltas(model, n) for n in ("default", "second", "new")), strict=True):
        torch.testing.assert_close(new, 0.3 * a - 1.5 * b, rtol=1e-12, atol=1e-12)
    assert model.peft_config["new"].r == 8


def test_negation_takes_a_skill_away_exactly() -> None:
    model = attach(manytune, Net().double(), (3, 3), target_modules=TARGETS)
    with model.disable_adapter():
        plain = model(IDS)
    model.add_weighted_adapter(["default"], [-1.0], "forget", "linear")
    model.base_model.set_adapter(["default", "forget"])
    torch.testing.assert_close(model(IDS), plain, rtol=1e-12, atol=1e-12)


def test_ranks_that_patterns_set_are_summed_layer_by_layer() -> None:
    model = attach(
        manytune,
        Net().double(),
        (2, 2),
        target_modules=TARGETS,
        rank_pattern={"q": 3},
        alpha_pattern={"v": 7},
    )
    model.add_weighted_adapter(["default", "second"], [1.0, 1.0], "new", "cat")
    for a, b, new in zip(*(deltas(model, n) for n in ("default", "second", "new")), strict=True):
        torch.testing.assert_close(new, a + b, rtol=1e-12, atol=1e-12)
    ranks = {path: layer.r["new"] for path, layer in model.tuner._layers.items()}
    assert {path: 6 if path.endswith(".q") else 4 for path in ranks} == ranks


def test_rank_stabilised_adapters_keep_their_scale() -> None:
    model = attach(manytune, Net().double(), (4, 4), target_modules=["q"], use_rslora=True)
    model.add_weighted_adapter(["default"], [1.0], "copy", "svd")
    for a, copied in zip(deltas(model, "default"), deltas(model, "copy"), strict=True):
        torch.testing.assert_close(copied, a, rtol=1e-9, atol=1e-9)


def test_an_adapter_at_some_layers_only_takes_part_there_only() -> None:
    base = LLAMA.build().double()
    model = get_peft_model(base, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    model.add_adapter("second", LoraConfig(target_modules=["v_proj"], init_lora_weights=False))
    model.add_weighted_adapter(["default", "second"], [2.0, 3.0], "new", "svd")
    attention = base.model.layers[0].self_attn
    for layer, name, weight in ((attention.q_proj, "default", 2.0), (attention.v_proj, "second", 3.0)):
        torch.testing.assert_close(
            layer.get_delta_weight("new"), weight * layer.get_delta_weight(name), rtol=1e-6, atol=1e-8
        )


def test_the_new_adapter_is_frozen_and_not_in_use_and_can_be_saved(tmp_path: Any) -> None:
    model = get_peft_model(GPT2.build(), LoraConfig())
    model.add_adapter("second", LoraConfig())
    trains = [name for name, p in model.named_parameters() if p.requires_grad]
    model.add_weighted_adapter(["default", "second"], [1.0, 1.0], "new", "linear")
    assert model.active_adapters == ["default"]
    assert [name for name, p in model.named_parameters() if p.requires_grad] == trains
    model.save_pretrained(tmp_path, selected_adapters=["new"])
    peft.PeftConfig.from_pretrained(tmp_path / "new")


def test_ia3_factors_are_summed_up_as_in_peft() -> None:
    outputs = []
    for library in (manytune, peft):
        with quiet():
            model = library.get_peft_model(LLAMA.build().double(), library.IA3Config())
            model.add_adapter("second", library.IA3Config())
        generator = torch.Generator().manual_seed(4)
        for name, parameter in sorted(model.named_parameters()):
            if "ia3_" in name:
                parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        model.add_weighted_adapter(["default", "second"], [0.5, 2.0], "new")
        model.set_adapter("new")
        outputs.append(model(torch.arange(6).view(1, 6) + 3).logits)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-9, atol=1e-9)


def test_a_module_trained_in_full_by_one_adapter_is_copied_and_by_two_is_an_error() -> None:
    model = get_peft_model(Net(), LoraConfig(target_modules=["q"], modules_to_save=["head"]))
    model.add_adapter("plain", LoraConfig(target_modules=["q"]))
    model.add_adapter("too", LoraConfig(target_modules=["q"], modules_to_save=["head"]))
    with torch.no_grad():
        model.base_model.model.head.modules_to_save["default"].weight.fill_(7)
    model.add_weighted_adapter(["plain", "default"], [1.0, 1.0], "new")
    assert (model.base_model.model.head.modules_to_save["new"].weight == 7).all()
    with pytest.raises(
        ValueError, match="if they target the same module with modules_to_save: head is trained"
    ):
        model.add_weighted_adapter(["too", "default"], [1.0, 1.0], "other")
    assert list(model.peft_config) == ["default", "plain", "too", "new"]


@pytest.mark.parametrize("kind", ["linear", "ties", "dare_linear", "dare_ties", "magnitude_prune"])
def test_different_ranks_are_an_error_where_factors_are_summed(kind: str) -> None:
    model = attach(manytune, Net(), (2, 3), target_modules=["q"])
    with pytest.raises(
        ValueError, match=r"must have the same r value .* at layers\.0\.q .* Use 'cat' or 'svd'"
    ):
        model.add_weighted_adapter(["default", "second"], [1.0, 1.0], "new", kind, density=0.5)
    assert "new" not in model.peft_config


BAD: dict[str, tuple[type[Exception], dict[str, Any], str]] = {
    "unknown adapter": (AdapterError, {"adapters": ["nobody"]}, "Adapter nobody does not exist"),
    "taken name": (AdapterError, {"adapter_name": "second"}, "'second' already exists"),
    "one weight": (AdapterError, {"adapters": ["default", "second"]}, "2 adapters and 1 weights"),
    "none": (AdapterError, {"adapters": [], "weights": []}, "0 adapters and 0 weights"),
    "kind": (ConfigError, {"combination_type": "mean"}, "Invalid combination_type: mean. Known: svd, linear"),
    "density": (
        ConfigError,
        {"combination_type": "ties"},
        "expected density above 0 and at most 1, found None",
    ),
    "sign": (ConfigError, {"majority_sign_method": "x"}, "expected 'total' or 'frequency', found 'x'"),
}


@pytest.mark.parametrize(("kind", "options", "message"), BAD.values(), ids=BAD.keys())
def test_unusable_arguments_say_what_was_expected(
    kind: type[Exception], options: dict[str, Any], message: str
) -> None:
    model = attach(manytune, Net(), (2, 2), target_modules=["q"])
    with pytest.raises(kind, match=message):
        model.add_weighted_adapter(
            **{"adapters": ["default"], "weights": [1.0], "adapter_name": "new", **options}
        )
    assert list(model.peft_config) == ["default", "second"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, "has use_dora=True: what it adds isn't BA alone"),
        ({"init_lora_weights": "pissa"}, "Turn it into a plain LoRA adapter first"),
    ],
)
def test_adapters_that_are_no_plain_sum_are_refused(options: dict[str, Any], message: str) -> None:
    model = get_peft_model(Net(), LoraConfig(target_modules=["q"], r=2, **options))
    with pytest.raises(ConfigError, match=message):
        model.add_weighted_adapter(["default"], [1.0], "new")


WITHOUT_SUMS = {
    "prompt-tuning": ({"num_virtual_tokens": 2}, "PromptTuningModel", "is trained to come directly before"),
    "full": ({}, "FullModel", "whole weights, not updates"),
    "bottleneck": ({}, "BottleneckModel", "has a nonlinearity in it"),
    "vera": ({"target_modules": ["q_proj"]}, "VeraModel", "don't add up"),
    "adalora": ({"target_modules": ["q_proj"], "total_step": 10}, "AdaLoraModel", "selection of triplets"),
    "combined": (
        {"weights": {"name": "lora"}, "prompt": {"name": "prompt-tuning", "num_virtual_tokens": 2}},
        *("CombinedModel", "soft prompts don't add up"),
    ),
}


@pytest.mark.parametrize(("method", "found"), WITHOUT_SUMS.items(), ids=WITHOUT_SUMS.keys())
def test_methods_without_sums_say_why(method: str, found: tuple[dict[str, Any], str, str]) -> None:
    options, kind, why = found
    model = get_peft_model(LLAMA.build(), peft_config_from(method, task_type="CAUSAL_LM", **options))
    with pytest.raises(AttributeError, match=f"{kind} has no arithmetic of adapters: .*{why}"):
        model.add_weighted_adapter(["default"], [1.0], "new")


def test_pruning_keeps_the_largest_or_a_random_share_scaled_up() -> None:
    values = torch.tensor([[0.1, -3.0], [2.0, 0.5]])
    assert largest(values, 0.5).tolist() == [[0.0, -3.0], [2.0, 0.0]]
    torch.manual_seed(0)
    kept = at_random(torch.ones(10_000), 0.25)
    assert set(kept.tolist()) == {0.0, 4.0}
    assert abs(float(kept.mean()) - 1) < 0.1


def test_ties_averages_only_those_that_agree_with_the_elected_sign() -> None:
    tensors = [torch.tensor([1.0, -2.0, 0.0]), torch.tensor([3.0, 1.0, 0.0]), torch.tensor([-1.0, 0.5, 0.0])]
    assert agreeing_mean(tensors, [1.0, 1.0, 1.0], "total").tolist() == [2.0, -2.0, 0.0]
    assert agreeing_mean(tensors, [1.0, 1.0, 1.0], "frequency").tolist() == [2.0, 0.75, 0.0]
