"""Full fine-tuning as a method: trains everything, and still gives the base back to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.methods.lora.compared_with_peft import Net, run, scatter, sorted_trainable
from tests.methods.tiny_models import GPT2, LLAMA
from tests.methods.tuners.test_merging import assert_same_bits, bits, trace

from manytune import AdapterError, ConfigError, FullConfig, PeftModel, PeftWarning, get_peft_model


def trained(**options: Any) -> PeftModel:
    model = get_peft_model(Net(), FullConfig(**options))
    scatter(model)
    return model


def test_every_parameter_trains_and_gets_a_gradient() -> None:
    base = LLAMA.build()
    model = get_peft_model(base, FullConfig(task_type="CAUSAL_LM"))
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.get_nb_trainable_parameters() == (base.num_parameters(), base.num_parameters())
    model(**LLAMA.inputs()).loss.backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())


def test_a_training_step_is_that_of_the_bare_model() -> None:
    bare, model = LLAMA.build(), get_peft_model(LLAMA.build(), FullConfig(task_type="CAUSAL_LM"))
    for net in (bare, model):
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
        for _ in range(3):
            optimizer.zero_grad()
            net(**LLAMA.inputs()).loss.backward()
            optimizer.step()
    assert_same_bits(bits(model.get_base_model()), bits(bare))


@pytest.mark.parametrize("family", [LLAMA, GPT2], ids=str)
@pytest.mark.parametrize("keep_base", [True, False])
def test_what_is_saved_loads_with_equal_logits(family: Any, keep_base: bool, tmp_path: Path) -> None:
    model = get_peft_model(family.build(), FullConfig(task_type="CAUSAL_LM", keep_base=keep_base))
    scatter(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(family.build(), tmp_path)
    assert torch.equal(run(loaded), run(model.eval()))
    assert not sorted_trainable(loaded)
    assert loaded.peft_config["default"].keep_base is keep_base


def test_disabled_is_the_base_to_the_bit_and_then_the_trained_model_again() -> None:
    model = trained()
    output, plain = run(model), run(Net())
    for _ in range(3):
        with model.disable_adapter():
            assert torch.equal(run(model), plain)
            assert_same_bits(bits(model.get_base_model()), bits(Net()))
            assert not sorted_trainable(model)
        assert torch.equal(run(model), output)
    assert len(sorted_trainable(model)) == len(list(Net().parameters()))


def test_unload_leaves_no_trace() -> None:
    base = Net()
    base.c1.requires_grad_(False)
    before, weights = [entry[:3] for entry in trace(base)], bits(base)
    model = get_peft_model(base, FullConfig())
    scatter(model)
    assert model.unload() is base
    assert_same_bits(bits(base), weights)
    assert [entry[:3] for entry in trace(base)] == before


def test_merge_and_unload_gives_the_trained_weights_in_the_plain_module() -> None:
    model = trained()
    output = run(model)
    plain = model.merge_and_unload()
    assert type(plain) is Net
    assert torch.equal(run(plain), output)


def test_a_safe_merge_of_broken_weights_is_refused() -> None:
    model = trained()
    model.get_base_model().c1.weight.data[0, 0] = float("nan")
    with pytest.raises(AdapterError, match="NaNs detected in the merged weights"):
        model.merge_and_unload(safe_merge=True)
    assert_same_bits(bits(model.unload()), bits(Net()))


def test_each_adapter_has_values_of_its_own() -> None:
    model = trained()
    first = run(model)
    model.add_adapter("second", FullConfig())
    assert torch.equal(run(model), first)
    model.set_adapter("second")
    assert torch.equal(run(model), run(Net()))
    scatter(model, seed=3)
    second = run(model)
    model.set_adapter("default")
    assert torch.equal(run(model), first)
    with pytest.warns(PeftWarning, match="was active which is now deleted"):
        model.delete_adapter("default")
    assert model.active_adapters == ["second"]
    assert torch.equal(run(model), second)
    model.delete_adapter("second")
    assert torch.equal(run(model.base_model), run(Net()))


def test_switching_while_disabled_takes_effect_once_enabled() -> None:
    model = trained()
    model.add_adapter("second", FullConfig())
    with model.disable_adapter():
        model.set_adapter("second", inference_mode=True)
        assert torch.equal(run(model), run(Net()))
    assert model.active_adapters == ["second"]
    assert not sorted_trainable(model)


def test_two_adapters_do_not_add_up() -> None:
    model = trained()
    model.add_adapter("second", FullConfig())
    with pytest.raises(
        AdapterError, match=r"Only one adapter of this method .* found \['default', 'second'\]"
    ):
        model.base_model.set_adapter(["default", "second"])
    assert model.active_adapters == ["default"]


def test_casting_casts_every_adapters_values_and_the_base() -> None:
    model = trained()
    model.add_adapter("second", FullConfig())
    model.to(torch.float64)
    scatter(model)
    output = run(model)
    model.set_adapter("second")
    assert torch.equal(run(model), run(Net().double()))
    model.set_adapter("default")
    assert torch.equal(run(model), output)
    assert_same_bits(bits(model.unload()), bits(Net().double()))


def test_merging_is_refused_with_the_way_to_get_the_weights() -> None:
    model = trained()
    with pytest.raises(AdapterError, match=r"nothing to merge.*merge_and_unload\(\) gives the model"):
        model.merge_adapter()
    with pytest.raises(AdapterError, match="nothing is ever merged"):
        model.unmerge_adapter()


def test_without_the_base_there_is_no_way_back() -> None:
    model = trained(keep_base=False)
    output = run(model)
    for call in (model.unload, model.disable_adapter().__enter__, lambda: model.delete_adapter("default")):
        with pytest.raises(
            AdapterError, match="trained with keep_base=False, so the base's weights are gone"
        ):
            call()
    for keep_base in (True, False):
        with pytest.raises(ConfigError, match="must be the only one"):
            model.add_adapter("second", FullConfig(keep_base=keep_base))
    assert list(model.peft_config) == ["default"]
    assert torch.equal(run(model), output)
    assert torch.equal(run(model.merge_and_unload()), output)


def test_without_the_base_no_copy_is_made() -> None:
    base = Net()
    pointers = [parameter.data_ptr() for parameter in base.parameters()]
    model = get_peft_model(base, FullConfig(keep_base=False))
    assert [parameter.data_ptr() for parameter in model.parameters()] == pointers
    kept = get_peft_model(Net(), FullConfig())
    assert {p.data_ptr() for p in kept.parameters()}.isdisjoint(
        t.data_ptr() for t in kept.base_model._pristine.values()
    )


def test_tied_weights_stay_tied() -> None:
    base = GPT2.build()
    model = get_peft_model(base, FullConfig(task_type="CAUSAL_LM"))
    scatter(model)
    assert base.lm_head.weight is base.transformer.wte.weight
    with model.disable_adapter():
        assert base.lm_head.weight is base.transformer.wte.weight
    assert model.unload().lm_head.weight is base.transformer.wte.weight


def test_a_checkpoint_that_lacks_a_weight_warns(tmp_path: Path) -> None:
    import safetensors.torch

    trained().save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(path)
    del tensors["base_model.model.c1.bias"]
    safetensors.torch.save_file(tensors, path)
    with pytest.warns(PeftWarning, match=r"Found missing adapter keys.*'base_model\.model\.c1\.bias'"):
        PeftModel.from_pretrained(Net(), tmp_path)
