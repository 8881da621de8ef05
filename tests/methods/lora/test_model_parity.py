"""LoRA next to the installed HF PEFT: names, initial values, what trains, outputs and gradients."""

from __future__ import annotations

import warnings

import peft
import pytest
import torch
from tests.methods.lora.compared_with_peft import (
    BY_NAME,
    CASES,
    NET,
    Case,
    Net,
    gradients,
    quiet,
    run,
    scatter,
    sorted_trainable,
)
from tests.methods.tiny_models import GPT2, LLAMA

import manytune
from manytune import PeftWarning

each_case = pytest.mark.parametrize("case", CASES, ids=str)


@each_case
def test_names_initial_values_and_what_trains_are_pefts(case: Case) -> None:
    mine, theirs = case.both(torch.float32)
    ours, expected = dict(mine.named_parameters()), dict(theirs.named_parameters())
    assert set(ours) == set(expected)
    assert [n for n in ours if ours[n].requires_grad] == [n for n in expected if expected[n].requires_grad]
    assert not [name for name in ours if not torch.equal(ours[name], expected[name])]
    assert mine.get_nb_trainable_parameters() == theirs.get_nb_trainable_parameters()


@each_case
def test_outputs_and_gradients_are_pefts(case: Case) -> None:
    mine, theirs = case.both()
    for model in (mine, theirs):
        scatter(model)
        model.eval()
    torch.testing.assert_close(run(mine), run(theirs), rtol=1e-12, atol=1e-12)
    found, expected = gradients(mine), gradients(theirs)
    assert set(found) == set(expected) == set(sorted_trainable(mine))
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("case", [BY_NAME["net-dropout"], BY_NAME["llama-dropout"]], ids=str)
def test_the_dropout_mask_of_a_seed_is_pefts(case: Case) -> None:
    mine, theirs = case.both()
    outputs, found = [], []
    for model in (mine, theirs):
        scatter(model)
        model.train()
        torch.manual_seed(5)
        outputs.append(run(model))
        torch.manual_seed(5)
        found.append(gradients(model))
    torch.testing.assert_close(*outputs, rtol=1e-12, atol=1e-12)
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-9, atol=1e-9, msg=name)
    torch.manual_seed(6)
    assert not torch.allclose(run(mine), outputs[0])


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(
    "options", [NET, {"target_modules": ["q", "c1"], "lora_bias": True}], ids=["net", "lora_bias"]
)
def test_several_active_adapters_add_up_as_pefts_do(options: dict[str, object], dropout: float) -> None:
    case = Case("several", Net, options | {"init_lora_weights": False, "lora_dropout": dropout})
    mine, theirs = case.both()
    for library, model in ((manytune, mine), (peft, theirs)):
        torch.manual_seed(8)
        with quiet():
            second = options | {"r": 3, "lora_alpha": 5, "init_lora_weights": False, "lora_dropout": dropout}
            model.add_adapter("second", library.LoraConfig(**second))
        model.base_model.set_adapter(["default", "second"])
        model.train()
    assert set(sorted_trainable(mine)) == set(sorted_trainable(theirs))
    torch.manual_seed(1)
    found = gradients(mine)
    torch.manual_seed(1)
    expected = gradients(theirs)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-9, msg=name)
    for model in (mine, theirs):
        model.eval()
    torch.testing.assert_close(run(mine), run(theirs), rtol=1e-12, atol=1e-12)


def test_initial_values_do_not_depend_on_the_adapters_name() -> None:
    case = BY_NAME["net-default"]
    first, second = case.attach(manytune, case.base()), case.attach(manytune, case.base(), "other")
    pairs = zip(sorted_trainable(first).values(), sorted_trainable(second).values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", ["net-default", "net-modules-to-save", "llama-default", "gpt2-default"])
@pytest.mark.parametrize("autocast_adapter_dtype", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_adapters_of_half_precision_bases_have_pefts_dtypes_and_outputs(
    name: str, dtype: torch.dtype, autocast_adapter_dtype: bool
) -> None:
    mine, theirs = BY_NAME[name].both(dtype, autocast_adapter_dtype=autocast_adapter_dtype)
    expected = {n: p.dtype for n, p in theirs.named_parameters()}
    if (
        autocast_adapter_dtype
    ):  # modules trained in full are kept in float32 here, too: a deliberate difference
        expected |= {n: torch.float32 for n in expected if ".modules_to_save." in n}
    assert {n: p.dtype for n, p in mine.named_parameters()} == expected
    for model in (mine, theirs):
        model.eval()
        scatter(model)
    found, reference = run(mine), run(theirs)
    assert found.dtype == reference.dtype == dtype
    torch.testing.assert_close(found, reference, rtol=0.03, atol=0.03)
    assert set(gradients(mine)) == set(gradients(theirs))


@pytest.mark.parametrize("name", ["net-default", "llama-default", "gpt2-default"])
def test_under_autocast_outputs_and_gradients_are_pefts(name: str) -> None:
    mine, theirs = BY_NAME[name].both(torch.float32)
    results = []
    for model in (mine, theirs):
        model.eval()
        scatter(model)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            results.append((run(model), gradients(model)))
    (found, grads), (reference, expected) = results
    assert found.dtype == reference.dtype == torch.bfloat16
    torch.testing.assert_close(found, reference, rtol=0.03, atol=0.03)
    assert {n: g.dtype for n, g in grads.items()} == {n: g.dtype for n, g in expected.items()}
    for gradient_name, gradient in grads.items():
        size = float(expected[gradient_name].abs().max())
        assert float((gradient - expected[gradient_name]).abs().max()) <= 0.05 * size, gradient_name


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("first", ["attached", "checkpointed"])
@pytest.mark.parametrize("family", [LLAMA, GPT2], ids=str)
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
def test_gradient_checkpointing_changes_no_gradient(family: object, first: str, reentrant: bool) -> None:
    case = BY_NAME[f"{family}-default"]
    plain = case.attach(manytune, case.base()).train()
    scatter(plain)
    expected = gradients(plain)
    base = case.base()
    how = {"gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    if first == "checkpointed":
        base.gradient_checkpointing_enable(**how)
    model = case.attach(manytune, base).train()
    if first == "attached":
        model.gradient_checkpointing_enable(**how)
    scatter(model)
    found = gradients(model)
    nonzero = {name for name, g in expected.items() if bool(g.any())}
    assert nonzero == {name for name, g in found.items() if bool(g.any())} == set(sorted_trainable(model))
    for name in nonzero:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-12, atol=1e-12, msg=name)


def test_a_bias_in_b_is_announced_where_it_can_not_be_merged() -> None:
    with pytest.warns(PeftWarning, match="the targeted layer has no bias"):
        manytune.get_peft_model(Net(), manytune.LoraConfig(target_modules=["v"], lora_bias=True))
    with pytest.raises(ValueError, match="lora_bias=True is not supported for Embedding"):
        manytune.get_peft_model(Net(), manytune.LoraConfig(target_modules=["emb"], lora_bias=True))


def test_fan_in_fan_out_is_known_from_the_layer() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        conv = manytune.get_peft_model(Net(), manytune.LoraConfig(target_modules=["c1"]))
    assert conv.peft_config["default"].fan_in_fan_out is True
    with pytest.warns(PeftWarning, match="Setting fan_in_fan_out to False"):
        linear = manytune.get_peft_model(
            Net(), manytune.LoraConfig(target_modules=["q"], fan_in_fan_out=True)
        )
    assert linear.peft_config["default"].fan_in_fan_out is False


def test_a_hook_on_a_factor_is_called() -> None:
    model = BY_NAME["net-default"].attach(manytune, Net())
    seen: list[str] = []
    layer = model.layers[0].q
    for part, name in (
        (layer.lora_A["default"], "A"),
        (layer.lora_B["default"], "B"),
        (layer.base_layer, "W"),
    ):
        part.register_forward_hook(lambda *_, name=name: seen.append(name))
    run(model)
    assert seen == ["W", "A", "B"]


def test_the_bases_own_attributes_are_found_through_the_model() -> None:
    base = Net()
    blocks, head = base.layers, base.head
    model = BY_NAME["net-default"].attach(manytune, base)
    for holder in (model, model.model, model.base_model, model.base_model.model):
        assert holder.layers is blocks
        assert holder.head is head
    with pytest.raises(AttributeError, match="nowhere"):
        _ = model.nowhere
