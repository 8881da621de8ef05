"""`with model.using(...)`: what set_adapter gives, for the length of a block, and no trace of it afterwards."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from tests.methods.test_registry_contract import VARIANTS, Case
from tests.methods.tiny_models import GPT2, LLAMA, T5, Family
from torch import Tensor, nn

from manytune import AdapterError, LoraConfig, PeftModel, PeftWarning, get_peft_model
from manytune.methods.registry import methods

CASES = [
    *(Case(method, LLAMA) for method in methods()),
    *(Case(variant.split("/")[0], LLAMA, variant) for variant in VARIANTS),
    Case("lora", GPT2),
    Case("lora", T5),
]


def scrambled(model: PeftModel, seed: int) -> None:
    """Random values for what trains."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def two_adapters(case: Case) -> tuple[PeftModel, nn.Module]:
    """A model with adapters `default`, in use, and `second`; and a copy of its base."""
    base = case.base()
    twin = copy.deepcopy(base)
    model = case.attach(base)
    scrambled(model, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PeftWarning)
        config = case.config()
        config.inference_mode = case.method == "adalora"  # only one of them may train
        model.add_adapter("second", config)
    if case.method != "adalora":
        model.set_adapter("second")
        scrambled(model, 2)
        model.set_adapter("default")
    return model.eval(), twin


def condition(model: PeftModel) -> tuple[Any, ...]:
    return (
        model.active_adapters,
        [name for name, parameter in model.named_parameters() if parameter.requires_grad],
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
    )


def assert_as_before(model: PeftModel, before: tuple[Any, ...]) -> None:
    after = condition(model)
    assert after[:2] == before[:2]
    assert all(torch.equal(after[2][name], tensor) for name, tensor in before[2].items())


@pytest.mark.parametrize(
    ("case", "merged"),
    [
        (case, merged)
        for case in CASES
        for merged in (False, True)
        if not (merged and case.method == "bottleneck")
    ],
    ids=str,
)
def test_within_the_block_the_model_is_what_set_adapter_makes_it_and_afterwards_what_it_was(
    case: Case, merged: bool
) -> None:
    model, twin = two_adapters(case)
    before, first = condition(model), case.logits(model)
    model.set_adapter("second")
    second = case.logits(model)
    model.set_adapter("default")
    if case.method != "adalora":  # where the second adapter is neutral
        assert not torch.equal(first, second)
    with model.using("second", merged=merged):
        torch.testing.assert_close(case.logits(model), second, rtol=1e-4, atol=1e-5)
        assert model.active_adapters == ["second"]
    assert torch.equal(case.logits(model), first)
    assert_as_before(model, before)
    with model.using("__base__", merged=merged):
        assert torch.equal(case.logits(model), case.logits(twin))
    assert_as_before(model, before)


@pytest.mark.parametrize("merged", [False, True], ids=["next to", "merged"])
@pytest.mark.parametrize(
    "case", [Case("lora", LLAMA), Case("prefix-tuning", LLAMA), Case("full", LLAMA)], ids=str
)
def test_an_error_within_the_block_leaves_no_trace_either(case: Case, merged: bool) -> None:
    model, _ = two_adapters(case)
    before = condition(model)
    with pytest.raises(KeyError), model.using("second", merged=merged):
        raise KeyError
    assert_as_before(model, before)


@pytest.mark.parametrize("family", [LLAMA, GPT2], ids=str)
def test_merged_weights_are_the_base_plus_the_products_and_the_base_comes_back_bit_for_bit(
    family: Family,
) -> None:
    model, twin = two_adapters(Case("lora", family))
    layers = dict(model.tuner._layers)
    pristine = dict(twin.named_parameters())
    for count in range(20):
        names = (["default"], ["second"], ["default", "second"])[count % 3]
        with model.using(names, merged=True):
            for path, layer in layers.items():
                delta: Tensor = sum(  # type: ignore[assignment]
                    layer.scaling[n] * layer.lora_B[n].weight.double() @ layer.lora_A[n].weight.double()
                    for n in names
                )
                expected = pristine[f"{path}.weight"] + (delta.t() if family is GPT2 else delta)
                torch.testing.assert_close(layer.weight.double(), expected, rtol=1e-5, atol=1e-6)
    for path, layer in layers.items():
        assert torch.equal(layer.weight, pristine[f"{path}.weight"])
    assert all(torch.equal(p, pristine[n]) for n, p in model.unload().named_parameters())


def test_room_is_made_once_and_follows_the_model_to_another_dtype() -> None:
    model, _ = two_adapters(Case("lora", LLAMA))
    layer = next(iter(model.tuner._layers.values()))
    places = set()
    for name in ("default", "second", "default"):
        with model.using(name, merged=True):
            places.add(layer.weight.data_ptr())
    assert len(places) == 1
    model.double()
    with model.using("second", merged=True):
        assert layer.weight.dtype == torch.float64
        merged = model(**LLAMA.inputs()).logits
    model.set_adapter("second")
    torch.testing.assert_close(merged, model(**LLAMA.inputs()).logits)


def test_generation_uses_the_adapter_and_blocks_may_stand_in_each_other() -> None:
    model, _ = two_adapters(Case("lora", LLAMA))
    options = {"input_ids": LLAMA.inputs()["input_ids"], "max_new_tokens": 4, "do_sample": False}
    expected = {}
    for name in ("second", "default"):
        model.set_adapter(name)
        expected[name] = model.generate(**options).tolist()
    with model.using("second"):
        assert model.generate(**options).tolist() == expected["second"]
        with model.using("default", merged=True):
            assert model.generate(**options).tolist() == expected["default"]
        assert model.generate(**options).tolist() == expected["second"]
    assert model.active_adapters == ["default"]


def test_heads_trained_in_full_are_switched_as_well() -> None:
    config = {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
    model = get_peft_model(LLAMA.build(), LoraConfig(**config))
    scrambled(model, 1)
    model.add_adapter("second", LoraConfig(**config))
    model.set_adapter("second")
    scrambled(model, 2)
    second = model.eval()(**LLAMA.inputs()).logits
    model.set_adapter("default")
    for merged in (False, True):
        with model.using("second", merged=merged):
            torch.testing.assert_close(model(**LLAMA.inputs()).logits, second, rtol=1e-4, atol=1e-5)


def test_adapters_that_are_disabled_stay_so() -> None:
    model, twin = two_adapters(Case("lora", LLAMA))
    with model.disable_adapter():
        for merged in (False, True):
            with model.using("second", merged=merged):
                assert torch.equal(model(**LLAMA.inputs()).logits, twin(**LLAMA.inputs()).logits)


def test_what_cannot_be_used_is_an_error_that_says_why() -> None:
    model, _ = two_adapters(Case("lora", LLAMA))
    unknown = r"Adapter third does not exist\. Loaded adapters: 'default', 'second'"
    with pytest.raises(AdapterError, match=unknown), model.using("third"):
        pass
    merged = r"\['default'\] are merged into the weights, so nothing else"
    with (
        model.using("default", merged=True),
        pytest.raises(AdapterError, match=merged),
        model.using("second"),
    ):
        pass
    for method in ("full", "prompt-tuning"):
        model, _ = two_adapters(Case(method, LLAMA))
        with pytest.raises(AdapterError, match="Only one"), model.using(["default", "second"]):
            pass


def test_a_weight_that_two_modules_share_is_not_merged() -> None:
    base: Any = LLAMA.build()
    base.config.tie_word_embeddings = True
    base.lm_head.weight = base.model.embed_tokens.weight
    model = get_peft_model(base, LoraConfig(target_modules=["lm_head"])).eval()
    for _ in range(2):
        with pytest.raises(AdapterError, match="share one weight"), model.using("default", merged=True):
            pass


def test_what_has_no_merged_form_is_refused_without_a_trace() -> None:
    model, _ = two_adapters(Case("bottleneck", LLAMA))
    before = condition(model)
    with pytest.raises(AdapterError, match="has a nonlinearity in it"), model.using("second", merged=True):
        pass
    assert_as_before(model, before)


def test_a_low_memory_merge_before_does_no_harm() -> None:
    model, _ = two_adapters(Case("lora", LLAMA))
    with pytest.warns(PeftWarning, match="Merged in low memory"):
        model.merge_adapter(["second"], low_memory=True)
    model.unmerge_adapter()
    weights = [layer.weight.clone() for layer in model.tuner._layers.values()]
    with model.using("second", merged=True):
        pass
    assert all(
        torch.equal(own.weight, w) for own, w in zip(model.tuner._layers.values(), weights, strict=True)
    )
