"""Merging, unmerging, disabling and detaching: exact ways into the base's weights and back."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.methods.lora.compared_with_peft import Net, run, scatter
from tests.methods.tiny_models import GPT2, LLAMA
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from manytune import AdapterError, LoraConfig, PeftModel, PeftWarning, get_peft_model

TARGETS = ["emb", "q", "v", "c1"]
ADAPTED = ["emb", "layers.0.q", "layers.0.v", "layers.1.q", "layers.1.v", "c1"]


def adapted(
    dtype: torch.dtype = torch.float64, names: tuple[str, ...] = ("default",), **options: Any
) -> PeftModel:
    """`Net` with random adapters, the first in use."""
    options = {"r": 3, "target_modules": TARGETS, "init_lora_weights": False} | options
    torch.manual_seed(1)
    model = get_peft_model(Net().to(dtype).eval(), LoraConfig(**options), names[0])
    for name in names[1:]:
        model.add_adapter(name, LoraConfig(**options))
    return model


def bits(model: nn.Module) -> dict[str, Tensor]:
    """A copy of everything in a model."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def base_weights(model: nn.Module) -> dict[str, Tensor]:
    """The base's weights in a model with adapters, by their name in the base."""
    return {
        name.replace(".base_layer.", ".").removeprefix("base_model.model."): tensor
        for name, tensor in model.state_dict().items()
        if ".lora_" not in name
    }


def assert_same_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert {name: t.dtype for name, t in found.items()} == {name: t.dtype for name, t in expected.items()}
    # Compared as bytes: a NaN is equal to itself, and -0.0 isn't 0.0.
    as_bytes = [{n: t.contiguous().view(torch.uint8) for n, t in side.items()} for side in (found, expected)]
    assert not [name for name in expected if not torch.equal(as_bytes[0][name], as_bytes[1][name])]


def delta(model: PeftModel, name: str, adapter: str) -> Tensor:
    """ΔW from the two factors, by hand."""
    layer: Any = model.get_submodule(f"base_model.model.{name}")
    if adapter in layer.lora_embedding_A:
        product = layer.lora_embedding_B[adapter] @ layer.lora_embedding_A[adapter]
    else:
        product = layer.lora_B[adapter].weight @ layer.lora_A[adapter].weight
    transposed = name in ("emb", "c1")
    return layer.lora_alpha[adapter] / layer.r[adapter] * (product.t() if transposed else product)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    value: torch.dtype = request.param
    return value


def test_a_thousand_cycles_leave_every_bit_of_the_base(dtype: torch.dtype) -> None:
    model = adapted(dtype, ("default", "second"))
    before = bits(Net().to(dtype))
    for cycle in range(1_000):
        model.merge_adapter([("default", "second")[cycle % 2]])
        model.unmerge_adapter()
    assert_same_bits(base_weights(model), before)
    assert_same_bits(bits(model.unload()), before)


def test_a_merged_model_computes_what_the_unmerged_one_does() -> None:
    model = adapted()
    expected = run(model)
    model.merge_adapter()
    assert all(model.get_submodule(f"base_model.model.{name}").merged for name in ADAPTED)
    torch.testing.assert_close(run(model), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("family", [LLAMA, GPT2], ids=str)
def test_a_merged_language_model_computes_what_the_unmerged_one_does(family: Any) -> None:
    config = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(family.build().double().eval(), config)
    expected = run(model)
    model.merge_adapter()
    torch.testing.assert_close(run(model), expected, rtol=1e-10, atol=1e-10)


def test_merged_weights_are_the_base_plus_the_scaled_product() -> None:
    model = adapted(names=("default", "second"), lora_alpha=5)
    pristine = bits(Net().double())
    model.merge_adapter(["default", "second"])
    for name in ADAPTED:
        expected = pristine[f"{name}.weight"] + delta(model, name, "default") + delta(model, name, "second")
        torch.testing.assert_close(base_weights(model)[f"{name}.weight"], expected, rtol=1e-12, atol=1e-12)


def test_a_half_precision_merge_rounds_once() -> None:
    model = adapted(torch.bfloat16, ("default", "second"))
    pristine = bits(Net().to(torch.bfloat16))
    model.merge_adapter(["default", "second"])
    for name in ADAPTED:
        wide = pristine[f"{name}.weight"].float() + delta(model, name, "default").float()
        expected = (wide + delta(model, name, "second").float()).bfloat16()
        assert torch.equal(base_weights(model)[f"{name}.weight"], expected)


def test_adapters_merge_one_after_another_in_any_order() -> None:
    model = adapted(names=("default", "second"))
    model.merge_adapter(["default", "second"])
    together = run(model)
    model.unmerge_adapter()
    model.merge_adapter(["second"])
    model.merge_adapter(["default"])
    layer: Any = model.get_submodule("base_model.model.c1")
    assert layer.merged_adapters == ["second", "default"]
    torch.testing.assert_close(run(model), together, rtol=1e-10, atol=1e-10)
    model.unmerge_adapter()
    model.base_model.set_adapter(["default", "second"])
    torch.testing.assert_close(run(model), together, rtol=1e-10, atol=1e-10)


def test_several_active_adapters_merge_together_by_default() -> None:
    model = adapted(names=("default", "second"))
    model.base_model.set_adapter(["default", "second"])
    expected = run(model)
    model.merge_adapter()
    torch.testing.assert_close(run(model), expected, rtol=1e-10, atol=1e-10)


def test_merging_again_says_so_and_changes_nothing() -> None:
    model = adapted()
    model.merge_adapter()
    before = bits(model)
    with pytest.warns(UserWarning, match="All adapters are already merged, nothing to do"):
        model.merge_adapter()
    assert_same_bits(bits(model), before)
    model.unmerge_adapter()
    with pytest.warns(UserWarning, match="Already unmerged"):
        model.unmerge_adapter()


def test_switching_while_merged_unmerges_and_says_so() -> None:
    model = adapted(names=("default", "second"))
    model.set_adapter("second")
    expected = run(model)
    model.set_adapter("default")
    model.merge_adapter()
    with pytest.warns(PeftWarning, match="Unmerging the model first"):
        model.set_adapter("second")
    assert torch.equal(run(model), expected)


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_safe_merge_of_a_broken_adapter_leaves_every_layer_as_it_was(
    value: float, low_memory: bool
) -> None:
    model = adapted(torch.float32, ("default", "broken"))
    layer: Any = model.get_submodule("base_model.model.layers.1.q")
    layer.lora_B["broken"].weight.data[0, 0] = value
    before = bits(model)
    with pytest.raises(
        ValueError, match=r"NaNs detected in the merged weights\. The adapter .*broken seems to be broken"
    ):
        model.merge_adapter(["default", "broken"], safe_merge=True, low_memory=low_memory)
    assert_same_bits(bits(model), before)
    assert not any(model.get_submodule(f"base_model.model.{name}").merged for name in ADAPTED)


def test_a_refused_merge_keeps_what_was_merged_before() -> None:
    model = adapted(names=("default", "broken"))
    layer: Any = model.get_submodule("base_model.model.layers.1.q")
    layer.lora_B["broken"].weight.data[0, 0] = float("nan")
    model.merge_adapter(["default"])
    before, expected = bits(model), run(model)
    with pytest.raises(AdapterError, match="broken"):
        model.merge_adapter(["broken"], safe_merge=True)
    assert_same_bits(bits(model), before)
    assert torch.equal(run(model), expected)
    model.unmerge_adapter()
    assert_same_bits(base_weights(model), bits(Net().double()))


def test_merge_and_unload_of_a_broken_adapter_leaves_the_model_attached() -> None:
    model = adapted()
    layer: Any = model.get_submodule("base_model.model.c1")
    layer.lora_B["default"].weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaNs detected"):
        model.merge_and_unload(safe_merge=True)
    assert list(model.peft_config) == ["default"]
    assert_same_bits(bits(model.unload()), bits(Net().double()))


def test_a_bias_with_nowhere_to_go_refuses_the_merge_and_leaves_the_model_attached() -> None:
    with pytest.warns(PeftWarning, match="no bias"):
        model = get_peft_model(Net(), LoraConfig(target_modules=["q", "v"], lora_bias=True))
    before = bits(model)
    for call in (model.merge_adapter, lambda: model.merge_adapter(low_memory=True), model.merge_and_unload):
        with pytest.raises(RuntimeError, match="Impossible to merge LoRA with `lora_bias=True`"):
            call()
        assert_same_bits(bits(model), before)
        assert list(model.peft_config) == ["default"]


def test_a_bias_in_b_merges_into_the_layers_bias() -> None:
    config = LoraConfig(target_modules=["q", "c1"], lora_bias=True, init_lora_weights=False)
    model = get_peft_model(Net().double(), config)
    expected = run(model)
    model.merge_adapter()
    torch.testing.assert_close(run(model), expected, rtol=1e-10, atol=1e-10)
    model.unmerge_adapter()
    assert_same_bits(bits(model.unload()), bits(Net().double()))


STATED = re.compile(r"Of ([\d,]+) weights ([\d,]+) \(.*%\) will differ .* by at most (\S+)\. Merge without")


@pytest.mark.parametrize("names", [("default",), ("default", "second")], ids=["one", "two"])
def test_a_low_memory_merge_states_exactly_what_unmerging_leaves(
    dtype: torch.dtype, names: tuple[str, ...]
) -> None:
    model = adapted(dtype, names)
    with pytest.warns(PeftWarning, match="Merged in low memory") as record:
        error = model.base_model.merge_adapter(list(names), low_memory=True)
    model.unmerge_adapter()
    before, after = bits(Net().to(dtype)), base_weights(model)
    differences = [(before[f"{name}.weight"] - after[f"{name}.weight"]).abs() for name in ADAPTED]
    changed = sum(int((d != 0).sum()) for d in differences)
    assert changed > 0
    assert (error.changed, error.total) == (changed, sum(d.numel() for d in differences))
    assert error.largest == max(float(d.max()) for d in differences)
    stated = STATED.search(str(record[0].message))
    assert stated
    assert [int(n.replace(",", "")) for n in stated.groups()[:2]] == [error.total, changed]
    assert float(stated[3]) == pytest.approx(error.largest, rel=5e-3)


def test_a_low_memory_merge_computes_the_same_and_copies_no_weight() -> None:
    model = adapted()
    expected = run(model)
    layers: list[Any] = [model.get_submodule(f"base_model.model.{name}") for name in ADAPTED]
    storages = [layer.weight.data_ptr() for layer in layers]
    with pytest.warns(PeftWarning, match="low memory"):
        model.merge_adapter(low_memory=True)
    torch.testing.assert_close(run(model), expected, rtol=1e-10, atol=1e-10)
    assert [layer.weight.data_ptr() for layer in layers] == storages
    assert not any(layer._pristine for layer in layers)


def test_the_two_forms_of_merging_do_not_mix() -> None:
    model = adapted(names=("default", "second"))
    model.merge_adapter(["default"])
    with pytest.raises(
        AdapterError, match=r"merged with low_memory=False; merge \['second'\] in the same form"
    ):
        model.merge_adapter(["second"], low_memory=True)
    model.unmerge_adapter()
    with pytest.warns(PeftWarning, match="low memory"):
        model.merge_adapter(["default"], low_memory=True)
    with pytest.raises(AdapterError, match="Unmerge, then merge them"):
        model.merge_adapter(["second"], low_memory=True)


def test_disabling_is_refused_where_the_exact_base_is_not_there() -> None:
    model = adapted()
    with pytest.warns(PeftWarning, match="low memory"):
        model.merge_adapter(low_memory=True)
    before = bits(model)
    with pytest.raises(AdapterError, match="exact weights aren't there"), model.disable_adapter():
        pass
    assert_same_bits(bits(model), before)
    model.unmerge_adapter()
    with model.disable_adapter():
        run(model)


def test_disabling_while_merged_gives_exactly_the_base_and_then_the_merged_model_again() -> None:
    model = adapted()
    plain = run(Net().double().eval())
    model.merge_adapter()
    merged = run(model)
    for _ in range(3):
        with model.disable_adapter():
            assert torch.equal(run(model), plain)
        assert torch.equal(run(model), merged)
    model.unmerge_adapter()
    assert_same_bits(base_weights(model), bits(Net().double()))


def test_unmerging_while_disabled_leaves_the_base() -> None:
    model = adapted()
    model.merge_adapter()
    with model.disable_adapter():
        model.unmerge_adapter()
        with pytest.raises(AdapterError, match="while adapters are disabled"):
            model.merge_adapter()
    assert_same_bits(base_weights(model), bits(Net().double()))


def test_casting_while_merged_casts_the_pristine_weights_too() -> None:
    model = adapted(torch.float32)
    model.merge_adapter()
    model.to(torch.float64)
    model.unmerge_adapter()
    assert_same_bits(base_weights(model), bits(Net().double()))
    model.merge_adapter()
    model.to(torch.bfloat16)
    model.unmerge_adapter()
    assert_same_bits(base_weights(model), bits(Net().to(torch.bfloat16)))


def test_moving_to_another_device_while_merged_moves_the_pristine_weights_too() -> None:
    model = adapted()
    model.merge_adapter()
    model.to("meta")
    layer: Any = model.get_submodule("base_model.model.c1")
    assert {tensor.device.type for tensor in layer._pristine.values()} == {"meta"}


def test_a_copy_made_while_merged_unmerges_on_its_own() -> None:
    model = adapted()
    model.merge_adapter()
    merged = run(model)
    twin = copy.deepcopy(model)
    model.unmerge_adapter()
    assert torch.equal(run(twin), merged)
    twin.unmerge_adapter()
    assert_same_bits(base_weights(twin), bits(Net().double()))
    scatter(twin)
    assert torch.equal(run(adapted()), run(model))


def test_a_merged_adapter_can_not_be_deleted() -> None:
    model = adapted(names=("default", "second"))
    model.merge_adapter()
    message = re.escape(
        "Cannot delete adapter(s) ['default'] while they are merged. Please unmerge them first."
    )
    before = bits(model)
    with pytest.raises(ValueError, match=message):
        model.delete_adapter("default")
    assert_same_bits(bits(model), before)
    assert list(model.peft_config) == ["default", "second"]
    model.delete_adapter("second")
    assert list(model.peft_config) == ["default"]


def test_merging_an_unknown_adapter_is_refused() -> None:
    model = adapted()
    with pytest.raises(ValueError, match=r"Adapter nobody does not exist\. Loaded adapters: 'default'"):
        model.merge_adapter(["nobody"])
    with pytest.raises(ValueError, match="Adapter nobody does not exist"):
        model.merge_and_unload(adapter_names=["nobody"])


def trace(model: nn.Module) -> Iterator[tuple[Any, ...]]:
    """Everything about a model that attaching could leave behind, but its weights."""
    for name, module in model.named_modules():
        hooks = [value for key, value in vars(module).items() if "hook" in key and value]
        yield name, type(module), repr(module), sorted(vars(module)), hooks
    for name, parameter in model.named_parameters():
        yield name, id(parameter), parameter.requires_grad, parameter.dtype, parameter.data_ptr()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": "all"},
        {"bias": "lora_only", "lora_bias": True, "target_modules": ["q"]},
        {"modules_to_save": ["head"]},
    ],
    ids=["plain", "bias", "both biases", "modules_to_save"],
)
@pytest.mark.parametrize("merged", [False, True], ids=["unmerged", "merged"])
def test_unload_leaves_no_trace(options: dict[str, Any], merged: bool) -> None:
    base = Net()
    base.layers[0].requires_grad_(False)
    before, weights = list(trace(base)), bits(base)
    model = get_peft_model(
        base, LoraConfig(**{"target_modules": TARGETS, "init_lora_weights": False} | options)
    )
    scatter(model)
    if merged:
        model.merge_adapter()
    assert model.unload() is base
    assert list(trace(base)) == before
    assert_same_bits(bits(base), weights)


def test_merge_and_unload_gives_a_plain_module_with_the_adapters_weights() -> None:
    model = adapted(modules_to_save=["head"])
    scatter(model)
    expected = run(model)
    plain = model.merge_and_unload()
    assert type(plain) is Net
    assert repr(plain) == repr(Net())
    assert list(plain.state_dict()) == list(Net().state_dict())
    assert all(tensor.is_contiguous() for tensor in plain.state_dict().values())
    assert not any("lora" in name or "modules_to_save" in name for name, _ in plain.named_modules())
    torch.testing.assert_close(run(plain), expected, rtol=1e-10, atol=1e-10)
    assert not hasattr(plain, "peft_config")


def test_merge_and_unload_takes_named_adapters_and_those_already_merged() -> None:
    model = adapted(names=("default", "second"))
    model.base_model.set_adapter(["default", "second"])
    expected = run(model)
    model.set_adapter("default")
    model.merge_adapter()
    plain = model.merge_and_unload(adapter_names=["default", "second"])
    torch.testing.assert_close(run(plain), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["default", "second"])
def test_merge_and_unload_takes_the_head_of_the_adapter_or_the_bases(name: str) -> None:
    model = adapted(modules_to_save=["head"])
    scatter(model)
    own = model.get_submodule(
        "base_model.model.head.modules_to_save.default.weight".rpartition(".")[0]
    ).weight.clone()
    model.add_adapter("second", LoraConfig(target_modules=["q"]))
    plain = model.merge_and_unload(adapter_names=[name])
    expected = own if name == "default" else Net().double().head.weight
    assert torch.equal(plain.head.weight, expected)


def test_merge_and_unload_of_a_disabled_model_writes_the_adapter() -> None:
    model = adapted()
    expected = run(model)
    with model.disable_adapter():
        plain = model.base_model.merge_and_unload()
    torch.testing.assert_close(run(plain), expected, rtol=1e-10, atol=1e-10)


def tied() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).double().eval()


def test_merging_into_a_weight_that_another_module_shares_is_refused() -> None:
    config = LoraConfig(
        task_type="CAUSAL_LM", target_modules=["q_proj", "embed_tokens"], init_lora_weights=False
    )
    model = get_peft_model(tied(), config)
    expected = run(model)
    for call in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(AdapterError, match=r"model\.embed_tokens and lm_head share one weight"):
            call()
    assert torch.equal(run(model), expected)
    assert_same_bits(bits(model.unload()), bits(tied()))


def test_layers_that_share_nothing_merge_in_a_model_with_tied_embeddings() -> None:
    config = LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False)
    model = get_peft_model(tied(), config)
    expected = run(model)
    torch.testing.assert_close(run(model.merge_and_unload()), expected, rtol=1e-10, atol=1e-10)


def test_no_gradient_reaches_an_adapter_that_is_merged() -> None:
    model = adapted()
    model.merge_adapter()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not run(model).requires_grad
