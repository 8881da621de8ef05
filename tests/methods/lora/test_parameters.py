"""LoRA on parameters that no linear layer holds: against HF PEFT, and against W + s·BA written into the weights."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from tests.methods.tiny_models import LLAMA
from tests.methods.tiny_moe import DEEPSEEK, GPT_OSS, MIXTURES, QWEN3, Mixture, logits
from torch import Tensor, nn

import manytune
from manytune import (
    AdaLoraConfig,
    AdapterError,
    ConfigError,
    LoraConfig,
    NoMatchingPeftModuleError,
    PeftModel,
)
from manytune.methods.lora.parameters import ParamWrapper
from manytune.methods.lora.vllm import vllm_rank as manytune_vllm_rank

EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]


def options(mixture: Mixture, **more: Any) -> dict[str, Any]:
    return {"r": 2, "target_modules": ["o_proj"], "target_parameters": [*EXPERTS, mixture.router], **more}


def ours(mixture: Mixture, **more: Any) -> PeftModel:
    """A model of ours with an adapter that does something."""
    model = manytune.get_peft_model(mixture.build(), LoraConfig(**options(mixture, **more)))
    scatter(model)
    return model


def scatter(model: nn.Module, seed: int = 9) -> None:
    """Give every parameter that trains a value that depends on its name alone."""
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad:
            parameter.data = (0.3 * torch.randn(parameter.shape, generator=generator)).to(parameter.dtype)


def pair(mixture: Mixture, **more: Any) -> tuple[PeftModel, Any]:
    """The same model and adapter in both libraries."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(mixture.build(), peft.LoraConfig(**options(mixture, **more)))
    scatter(theirs)
    return ours(mixture, **more), theirs


def moved(model: nn.Module, mixture: Mixture) -> float:
    return float((logits(model) - logits(mixture.build())).detach().abs().max())


# -- parity


@pytest.mark.parametrize("mixture", MIXTURES, ids=str)
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"use_rslora": True, "lora_alpha": 3},
        {"rank_pattern": {"down_proj": 5}, "alpha_pattern": {r".*experts\.gate_up_proj": 1}},
        {"target_modules": [], "target_parameters": ["experts.down_proj"]},
        {"target_modules": [], "target_parameters": ["layers.1.mlp.experts.gate_up_proj"]},
        {"target_modules": None},
    ],
    ids=["plain", "rslora", "patterns", "one", "one-layer", "alone"],
)
def test_it_is_peft(mixture: Mixture, more: dict[str, Any]) -> None:
    mine, theirs = pair(mixture, **more)
    assert {n: p.shape for n, p in mine.named_parameters()} == {
        n: p.shape for n, p in theirs.named_parameters()
    }
    outputs = logits(mine), logits(theirs)
    assert moved(mine, mixture) > 1e-2
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)
    for output in outputs:
        output.square().sum().backward()
    expected = {n: p.grad for n, p in theirs.named_parameters()}
    for name, parameter in mine.named_parameters():
        assert parameter.requires_grad == ("lora_" in name)
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("mixture", MIXTURES, ids=str)
@pytest.mark.parametrize("init", [True, False, "gaussian"])
def test_it_starts_with_pefts_numbers(mixture: Mixture, init: bool | str) -> None:
    started = []
    for library in (manytune, peft):
        base = mixture.build()
        torch.manual_seed(7)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = library.get_peft_model(
                base, library.LoraConfig(**options(mixture, init_lora_weights=init))
            )
        started.append({n: p.detach() for n, p in model.named_parameters() if "lora_" in n})
        started.append(torch.rand(1))  # type: ignore[arg-type]
    torch.testing.assert_close(started[:2], started[2:], rtol=0, atol=0)


@pytest.mark.parametrize("mixture", MIXTURES, ids=str)
def test_files_go_both_ways_bit_for_bit(mixture: Mixture, tmp_path: Path) -> None:
    mine, theirs = pair(mixture)
    mine.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    files = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("ours", "theirs")]
    torch.testing.assert_close(files[0], files[1], rtol=0, atol=0)
    assert any(".experts.base_layer.lora_A.weight" in key for key in files[0])
    config = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert config["target_parameters"] == [*EXPERTS, mixture.router]
    back = PeftModel.from_pretrained(mixture.build(), tmp_path / "theirs")
    torch.testing.assert_close(logits(back), logits(mine), rtol=0, atol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        there = peft.PeftModel.from_pretrained(mixture.build(), str(tmp_path / "ours"))
    torch.testing.assert_close(logits(there), logits(theirs), rtol=0, atol=0)


def test_an_empty_list_asks_for_nothing(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(
            QWEN3.build(), peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
        )
    theirs.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_parameters"] == []
    mine = PeftModel.from_pretrained(QWEN3.build(), tmp_path)
    torch.testing.assert_close(logits(mine), logits(theirs))
    for config in (
        LoraConfig(target_parameters=[]),
        AdaLoraConfig(target_parameters=[], total_step=5),
        LoraConfig(
            trainable_token_indices=[], layer_replication=[], loftq_config={}, alora_invocation_tokens=[]
        ),
    ):
        manytune.get_peft_model(LLAMA.build(), config)


# -- what W + s·BA is


def written(model: PeftModel, mixture: Mixture) -> nn.Module:
    """The base with W + s·BA written into each weight, by the definition, expert by expert."""
    base = mixture.build()
    for path, layer in model.get_base_model().named_modules():
        if isinstance(layer, ParamWrapper):
            inner = layer.get_base_layer()
            weight = base.get_submodule(path.replace(".base_layer", "")).get_parameter(layer.parameter_name)
            a = layer.lora_A["default"].weight
            b = layer.lora_B["default"].weight
            experts, r = layer.num_experts, layer.r["default"]
            for e in range(experts):
                delta = b[:, e::experts] @ a[e * r : (e + 1) * r] * layer.scaling["default"]  # (out, in)
                turned = delta.t() if getattr(inner, "is_transposed", False) and weight.dim() == 3 else delta
                (weight[e] if weight.dim() == 3 else weight).data.add_(turned.detach())
        elif path.endswith("o_proj"):
            delta = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * layer.scaling["default"]
            base.get_submodule(path).weight.data.add_(delta.detach())
    return base


@pytest.mark.parametrize("mixture", MIXTURES, ids=str)
def test_the_output_is_that_of_the_sum_in_the_weights(mixture: Mixture) -> None:
    model = ours(mixture)
    torch.testing.assert_close(logits(model), logits(written(model, mixture)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mixture", MIXTURES, ids=str)
def test_merging_is_exact_and_leaves_no_trace(mixture: Mixture) -> None:
    model = ours(mixture)
    before = {n: p.clone() for n, p in model.named_parameters() if "lora_" not in n}
    expected, base = logits(model), logits(mixture.build())
    model.merge_adapter()
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)
    with model.disable_adapter():
        assert torch.equal(logits(model), base)
    model.unmerge_adapter()
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if "lora_" not in n)
    assert torch.equal(logits(model), expected)
    merged = copy.deepcopy(model).merge_and_unload()
    torch.testing.assert_close(logits(merged), expected, rtol=1e-5, atol=1e-5)
    assert {n: type(m) for n, m in merged.named_modules()} == {
        n: type(m) for n, m in mixture.build().named_modules()
    }
    plain = model.unload()
    assert torch.equal(logits(plain), base) and repr(plain) == repr(mixture.build())
    assert all(parameter.requires_grad for parameter in plain.parameters())


def test_a_merge_that_is_not_finite_is_refused_and_changes_nothing() -> None:
    model = ours(QWEN3)
    before = logits(model)
    next(p for n, p in model.named_parameters() if "experts.lora_B" in n).data[0, 0] = float("nan")
    with pytest.raises(AdapterError, match="NaNs detected"):
        model.merge_adapter(safe_merge=True)
    assert not any(layer.merged for layer in model.modules() if isinstance(layer, ParamWrapper))
    assert before.isfinite().all()


@pytest.mark.parametrize("mixture", [QWEN3, GPT_OSS], ids=str)
def test_the_error_of_a_merge_in_low_memory_is_stated(mixture: Mixture) -> None:
    model = ours(mixture, target_modules=[])
    expected = logits(model)
    with pytest.warns(manytune.PeftWarning, match="Merged in low memory"):
        model.merge_adapter(low_memory=True)
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)
    model.unmerge_adapter()
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)


# -- dtypes, training


def test_an_update_too_small_for_the_weights_dtype_is_not_rounded_away() -> None:
    """W + ΔW is W in bfloat16 if ΔW is below half a unit in W's last place, and the output moves all the same."""
    base = GPT_OSS.build().to(torch.bfloat16)
    for name, parameter in base.named_parameters():
        parameter.data.fill_(0.0 if "bias" in name else 1.0)
    config = LoraConfig(r=1, lora_alpha=1, target_modules=[], target_parameters=["experts.gate_up_proj"])
    model = manytune.get_peft_model(base, config)
    layer = model.base_model.model.model.layers[0].mlp.experts
    signs = torch.tensor([1.0, -1.0]).repeat(8)
    layer.lora_A["default"].weight.data.copy_(1e-3 * signs.expand(4, 16))
    layer.lora_B["default"].weight.data.fill_(1.0)
    assert torch.equal(layer.adapted_weight(), layer.get_base_layer().gate_up_proj)
    inputs = (signs[None].bfloat16(), torch.tensor([[0]]), torch.ones(1, 1, dtype=torch.bfloat16))
    # The base's sums are zero; the update's, 16 / 1000 for each gate and each unit, go through the gate and are added.
    expected = 24 * layer.get_base_layer()._apply_gate(torch.full((1, 48), 0.016))[0, 0]
    assert float(layer(*inputs)[0, 0].detach()) == pytest.approx(float(expected), rel=0.01)
    with model.disable_adapter():
        assert torch.equal(layer(*inputs), torch.zeros(1, 16, dtype=torch.bfloat16))


def test_weights_of_eight_bits_take_an_update() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.Module()
            self.experts.weight = nn.Parameter(torch.tensor([[1.0, -448.0]]).to(torch.float8_e4m3fn), False)
            self.experts.forward = lambda x: x @ self.experts.weight.to(x.dtype).t()  # type: ignore[method-assign]

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.experts(x)
            return result

    model = manytune.get_peft_model(
        Holder(), LoraConfig(r=1, lora_alpha=1, target_modules=[], target_parameters=["experts.weight"])
    )
    layer = model.base_model.model.experts
    assert layer.lora_A["default"].weight.dtype == torch.float32
    layer.lora_A["default"].weight.data = torch.tensor([[1.0, 100.0]])
    layer.lora_B["default"].weight.data = torch.tensor([[-1.0]])
    # -448 is the smallest number of this format: the sum ends there, rather than in NaN.
    expected = torch.tensor([[0.0, -448.0]])
    assert torch.equal(layer.adapted_weight().float(), expected)
    model.merge_adapter()
    assert torch.equal(layer.get_base_layer().weight.float(), expected)
    model.unmerge_adapter()
    assert torch.equal(layer.get_base_layer().weight.float(), torch.tensor([[1.0, -448.0]]))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
def test_gradients_are_the_same_with_checkpointing(reentrant: bool) -> None:
    found = []
    for checkpointing in (False, True):
        model = ours(QWEN3)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.train()
        logits(model).square().sum().backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    torch.testing.assert_close(found[0], found[1])


def test_dropout_is_on_the_way_into_a() -> None:
    """Which HF PEFT refuses; with a rate near one the update all but vanishes, in training only."""
    model = ours(QWEN3, target_modules=[], target_parameters=EXPERTS, lora_dropout=0.999999)
    base = QWEN3.build()
    model.train()
    torch.testing.assert_close(logits(model), logits(base), rtol=1e-5, atol=1e-5)
    model.eval()
    without = ours(QWEN3, target_modules=[], target_parameters=EXPERTS)
    torch.testing.assert_close(logits(model), logits(without), rtol=0, atol=0)


def test_a_hook_on_the_experts_sees_the_call_and_the_output_is_the_same() -> None:
    model = ours(QWEN3)
    expected, calls = logits(model), []
    for layer in model.modules():
        if isinstance(layer, ParamWrapper) and layer.num_experts > 1:
            layer.get_base_layer().register_forward_hook(lambda *args: calls.append(1))
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)
    assert calls
    dropping = ours(QWEN3, target_parameters=EXPERTS, lora_dropout=0.5).train()
    dropping.base_model.model.model.layers[0].mlp.experts.get_base_layer().register_forward_hook(
        lambda *args: None
    )
    with pytest.raises(AdapterError, match=r"Qwen3MoeExperts\.\w+ has hooks.*lora_dropout has no place"):
        logits(dropping)


# -- several adapters


def test_adapters_live_next_to_each_other() -> None:
    model = ours(QWEN3)
    first = logits(model)
    model.add_adapter("b", LoraConfig(**options(QWEN3, r=3)))
    model.set_adapter("b")
    scatter(model, seed=4)
    second = logits(model)
    alone = manytune.get_peft_model(QWEN3.build(), LoraConfig(**options(QWEN3, r=3)))
    scatter(alone, seed=4)
    torch.testing.assert_close(second, logits(alone), rtol=0, atol=0)
    model.base_model.set_adapter(["default", "b"])
    both = logits(model)
    model.merge_adapter(["default", "b"])
    torch.testing.assert_close(logits(model), both, rtol=1e-5, atol=1e-5)
    model.unmerge_adapter()
    model.delete_adapter("b")
    model.set_adapter("default")
    assert torch.equal(logits(model), first)
    with model.using("__base__"):
        assert torch.equal(logits(model), logits(QWEN3.build()))
    with model.using("default", merged=True):
        torch.testing.assert_close(logits(model), first, rtol=1e-5, atol=1e-5)


SETS = (["experts.down_proj"], ["experts.gate_up_proj"], EXPERTS, ["gate.weight"])


@pytest.mark.parametrize("first", SETS, ids=str)
@pytest.mark.parametrize("second", SETS, ids=str)
def test_adapters_may_target_different_parameters_and_keep_pefts_names_in_files(
    first: list[str], second: list[str], tmp_path: Path
) -> None:
    """HF PEFT refuses a second adapter with other targets; each one's file is as if it had been alone."""

    def config(targets: list[str]) -> LoraConfig:
        return LoraConfig(r=2, target_modules=[], target_parameters=targets)

    model = manytune.get_peft_model(QWEN3.build(), config(first))
    scatter(model, 1)
    model.add_adapter("b", config(second))
    model.set_adapter("b")
    scatter(model, 2)
    model.save_pretrained(tmp_path)
    for targets, name, directory in ((first, "default", tmp_path), (second, "b", tmp_path / "b")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            alone = peft.get_peft_model(
                QWEN3.build(), peft.LoraConfig(r=2, target_modules=[], target_parameters=targets)
            )
            back = peft.PeftModel.from_pretrained(QWEN3.build(), str(directory))
        model.set_adapter(name)
        expected = logits(model)
        assert set(load_file(directory / "adapter_model.safetensors")) == set(
            peft.get_peft_model_state_dict(alone)
        )
        torch.testing.assert_close(logits(back), expected, rtol=1e-5, atol=1e-5)
        assert moved(model, QWEN3) > 1e-3
    loaded = PeftModel.from_pretrained(QWEN3.build(), tmp_path / "b", "b")
    assert loaded.load_adapter(tmp_path, "default").missing_keys == []
    for name in ("default", "b"):
        loaded.set_adapter(name)
        model.set_adapter(name)
        assert torch.equal(logits(loaded), logits(model))
    model.merge_adapter(["default", "b"])
    model.unmerge_adapter()
    assert torch.equal(logits(model.unload()), logits(QWEN3.build()))


def test_low_cpu_mem_usage_gives_the_same(tmp_path: Path) -> None:
    model = ours(QWEN3)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(QWEN3.build(), tmp_path, low_cpu_mem_usage=True)
    assert torch.equal(logits(loaded), logits(model))


def test_a_missing_tensor_is_named_as_it_is_in_memory(tmp_path: Path) -> None:
    model = ours(QWEN3, target_modules=[], target_parameters=["experts.gate_up_proj"])
    tensors = manytune.get_peft_model_state_dict(model)
    lacking = {key: tensor for key, tensor in tensors.items() if "layers.1" not in key}
    other = ours(QWEN3, target_modules=[], target_parameters=["experts.down_proj"])
    other.add_adapter("b", LoraConfig(r=2, target_modules=[], target_parameters=["experts.gate_up_proj"]))
    missing = manytune.set_peft_model_state_dict(other, lacking, "b").missing_keys
    assert {name in dict(other.named_parameters()) for name in missing} == {True} and len(missing) == 2


# -- what is said


def test_repr_and_status_show_which_parameter_is_adapted() -> None:
    mine, theirs = pair(QWEN3)
    assert "parameter_name='gate_up_proj'" in repr(mine)
    for status in ("get_layer_status",):
        found, expected = getattr(mine, status)(), getattr(theirs, status)()
        kinds = {layer.name: layer.module_type for layer in expected}
        assert {layer.name: layer.module_type for layer in found} == kinds
        assert "lora.ParamWrapper" in kinds.values()
    assert mine.get_nb_trainable_parameters() == theirs.get_nb_trainable_parameters()
    assert mine.get_model_status().num_adapter_layers == theirs.get_model_status().num_adapter_layers


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": (
        {"target_parameters": ["experts.down_porj"]},
        r"target_parameters: 'experts\.down_porj' names no parameter.*Did you mean 'down_proj'",
    ),
    "nothing-among-others": (
        {"target_parameters": ["experts.down_proj", "experts.w2"]},
        r"'experts\.w2' names no parameter of the model",
    ),
    "a-module": (
        {"target_parameters": ["q_proj"]},
        r"'q_proj' names no parameter.*model\.layers\.0\.self_attn\.q_proj is a module; name those in target_modules",
    ),
    "vector": (
        {"target_parameters": ["input_layernorm.weight"]},
        r"weight of Qwen3MoeRMSNorm has shape \(16,\).*expected a matrix, or one for each expert",
    ),
    "both": (
        {"target_parameters": ["q_proj.weight"], "target_modules": ["q_proj"]},
        r"target_parameters names model\.layers\.0\.self_attn\.q_proj\.weight, and target_modules names",
    ),
    "dora": ({"use_dora": True}, r"use_dora=True is not supported for Qwen3Moe\w+\.\w+"),
    "bias": ({"lora_bias": True}, r"lora_bias=True is not supported for"),
    "dropout": ({"lora_dropout": 0.1}, r"lora_dropout=0\.1 is not supported for Qwen3MoeTopKRouter\.weight"),
    "pissa": ({"init_lora_weights": "pissa"}, r"init_lora_weights='pissa'.*Qwen3Moe"),
    "orthogonal": (
        {"init_lora_weights": "orthogonal"},
        r"init_lora_weights='orthogonal'.*linear layers only",
    ),
    "layers": (
        {"layers_to_transform": [0]},
        r"target_parameters names model\.layers\.1\.mlp\.\S+, which layers_to_transform would leave out",
    ),
    "exclusion": (
        {"exclude_modules": [r"layers.0.mlp.experts"]},
        r"target_parameters names model\.layers\.0\.mlp\.experts\.\w+, which exclude_modules would leave out",
    ),
    "rank": ({"rank_pattern": {"experts.w2": 4}}, r"rank_pattern\['experts\.w2'\] has no effect"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_done_is_refused_by_name(name: str) -> None:
    more, message = REFUSED[name]
    base = QWEN3.build()
    before = repr(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises((ConfigError, NoMatchingPeftModuleError), match=message):
            manytune.get_peft_model(base, LoraConfig(**options(QWEN3, target_modules=["o_proj"]) | more))
    assert repr(base) == before


def test_a_parameter_of_the_model_itself_is_refused() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(2, 2))
            self.lin = nn.Linear(2, 2)

    with pytest.raises(ConfigError, match="'w' is a parameter of the model itself"):
        manytune.get_peft_model(Model(), LoraConfig(target_modules=["lin"], target_parameters=["w"]))


def test_a_layer_is_adapted_in_one_way_whichever_adapter_comes_first() -> None:
    as_module = {"r": 2, "target_modules": ["q_proj"]}
    as_parameter = {"r": 2, "target_modules": [], "target_parameters": ["q_proj.weight"]}
    for first, second in ((as_module, as_parameter), (as_parameter, as_module)):
        model = manytune.get_peft_model(QWEN3.build(), LoraConfig(**first))  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="target_parameters"):
            model.add_adapter("b", LoraConfig(**second))  # type: ignore[arg-type]
        assert list(model.peft_config) == ["default"]


def test_adalora_adapts_no_parameters() -> None:
    with pytest.raises(ConfigError, match=r"target_parameters=.*AdaLoRA does not support"):
        AdaLoraConfig(target_parameters=EXPERTS, total_step=10)


def test_what_reads_adapters_without_a_model_refuses_them_by_name() -> None:
    config = LoraConfig(**options(QWEN3))
    with pytest.raises(ConfigError, match="vLLM runs plain LoRA adapters only, and it adapts parameters"):
        manytune_vllm_rank(config, [])
    with pytest.raises(ConfigError, match="can't tell from a state_dict which parameters"):
        manytune.inject_adapter_in_model(config, QWEN3.build(), state_dict={})


def test_injected_parameters_are_pefts(tmp_path: Path) -> None:
    mine = manytune.inject_adapter_in_model(LoraConfig(**options(QWEN3)), QWEN3.build())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.inject_adapter_in_model(peft.LoraConfig(**options(QWEN3)), QWEN3.build())
    scatter(mine)
    scatter(theirs)
    torch.testing.assert_close(logits(mine), logits(theirs), rtol=1e-5, atol=1e-5)
    states = manytune.get_peft_model_state_dict(mine), peft.get_peft_model_state_dict(theirs)
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_a_recipe_names_parameters() -> None:
    from manytune.methods.registry import peft_config_from

    config = peft_config_from("lora", r=2, target_modules=[], target_parameters=EXPERTS)
    model = manytune.get_peft_model(DEEPSEEK.build(), config)
    assert len([layer for layer in model.modules() if isinstance(layer, ParamWrapper)]) == 2
