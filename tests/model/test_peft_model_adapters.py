"""Several named adapters in one model: adding, switching, disabling and deleting, and what each of them costs."""

from __future__ import annotations

import copy
import gc
import re
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from tests.methods.lora.compared_with_peft import Net, quiet, run, scatter, sorted_trainable
from torch import nn

import manytune
from manytune import AdapterError, ConfigError, LoraConfig, PeftModel, PeftWarning, get_peft_model
from manytune.methods.tuners.targets import adapter_layers

TARGETS = ["emb", "q", "v", "c1"]


def config(**options: Any) -> LoraConfig:
    return LoraConfig(**{"r": 2, "target_modules": TARGETS, "init_lora_weights": False} | options)


def with_adapters(*names: str, **options: Any) -> PeftModel:
    torch.manual_seed(0)
    model = get_peft_model(Net().eval(), config(**options), names[0])
    for name in names[1:]:
        model.add_adapter(name, config(**options))
    return model


def trains(model: nn.Module) -> set[str]:
    """Names of the adapters whose parameters train."""
    return {name for name in ("one", "two", "three") if any(f".{name}" in n for n in sorted_trainable(model))}


# -- adding


def test_an_added_adapter_is_neither_in_use_nor_trains() -> None:
    model = with_adapters("one")
    before, trainable = run(model), set(sorted_trainable(model))
    model.add_adapter("two", config(modules_to_save=["head"]))
    assert torch.equal(run(model), before)
    assert set(sorted_trainable(model)) == trainable
    assert (model.active_adapter, model.active_adapters) == ("one", ["one"])
    assert list(model.peft_config) == ["one", "two"]


def test_a_taken_name_is_refused_and_nothing_changes() -> None:
    model = with_adapters("one")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="Adapter with name 'one' already exists"):
        model.add_adapter("one", config(r=7))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.peft_config["one"].r == 2


@pytest.mark.parametrize("name", [".", "a.b", "../up", "a/b", "keys", "train"])
def test_a_name_that_can_not_be_a_modules_or_a_directorys_is_refused(name: str) -> None:
    base = Net()
    before = repr(base)
    with pytest.raises(AdapterError, match=rf"{re.escape(repr(name))} can't name an adapter"):
        get_peft_model(base, config(), name)
    assert repr(base) == before
    model = with_adapters("one")
    with pytest.raises(AdapterError, match="can't name an adapter"):
        model.add_adapter(name, config())
    assert list(model.peft_config) == ["one"]


@pytest.mark.parametrize("library", [manytune, peft], ids=["manytune", "peft"])
def test_only_one_adapter_may_train_biases_and_others_may_stand_beside_it(library: Any) -> None:
    with quiet():
        model = library.get_peft_model(Net(), library.LoraConfig(target_modules=["q"], bias="all"), "one")
    model.add_adapter("plain", library.LoraConfig(target_modules=["q"]))
    before = repr(model)
    with pytest.raises(ValueError, match="supports only 1 adapter with bias"):
        model.add_adapter("two", library.LoraConfig(target_modules=["q"], bias="lora_only"))
    assert (repr(model), list(model.peft_config)) == (before, ["one", "plain"])


def test_rank_stabilised_patterns_with_pissa_warn_that_there_is_no_conversion() -> None:
    with pytest.warns(
        PeftWarning, match="Using Rank-Stabilized LoRA with rank_pattern/alpha_pattern"
    ) as seen:
        LoraConfig(init_lora_weights="pissa", use_rslora=True, rank_pattern={"q": 2})
    assert len(seen) == 1


def test_adapters_of_different_methods_do_not_combine() -> None:
    model = with_adapters("one")
    with pytest.raises(
        ConfigError, match=r"Cannot combine adapters with different peft types\. Found LORA and FULL"
    ):
        model.add_adapter("two", manytune.FullConfig())
    assert list(model.peft_config) == ["one"]


def test_an_adapters_name_within_the_prefix_warns() -> None:
    with pytest.warns(PeftWarning, match="Adapter name 'lora' should not be contained in the prefix 'lora_'"):
        get_peft_model(Net(), config(), "lora")


@pytest.mark.parametrize("training", [True, False])
def test_attaching_keeps_the_training_mode(training: bool) -> None:
    base = Net().train(training)
    base.layers[0].train(not training)
    modes = {id(module): module.training for module in base.modules()}
    model = get_peft_model(base, config(lora_dropout=0.5, modules_to_save=["head"]))
    model.add_adapter("second", config(lora_dropout=0.5, modules_to_save=["head"]))
    assert {id(m): m.training for m in model.modules() if id(m) in modes} == modes
    for path, layer in adapter_layers(model.get_base_model()):
        inside = training != path.startswith("layers.0")
        assert all(dropout.training == inside for dropout in layer.lora_dropout.values()), path
    assert model.head.training == training


# -- switching


def test_exactly_the_adapter_in_use_trains() -> None:
    model = with_adapters("one", "two", "three", modules_to_save=["head"])
    for name in ("two", "three", "one"):
        model.set_adapter(name)
        assert model.active_adapters == [name]
        assert trains(model) == {name}
        assert all(f".{name}" in parameter for parameter in sorted_trainable(model))
        assert len(sorted_trainable(model)) == 2 * 6 + 2
    model.set_adapter("two", inference_mode=True)
    assert not sorted_trainable(model)
    model.set_adapter("two")
    assert trains(model) == {"two"}


def test_switching_gives_each_adapters_own_output() -> None:
    model = with_adapters("one", "two", modules_to_save=["head"])
    outputs = {}
    for name in ("one", "two"):
        model.set_adapter(name)
        scatter(model, seed=len(name) + ord(name[0]))
        outputs[name] = run(model)
    assert not torch.allclose(outputs["one"], outputs["two"])
    for name in ("one", "two", "one"):
        model.set_adapter(name)
        assert torch.equal(run(model), outputs[name])


def test_an_unknown_adapter_is_refused_and_nothing_changes() -> None:
    model = with_adapters("one", "two")
    for names in ("nobody", ["two", "nobody"]):
        with pytest.raises(
            ValueError, match=r"Adapter nobody does not exist\. Loaded adapters: 'one', 'two'"
        ):
            model.base_model.set_adapter(names)
    assert model.active_adapters == ["one"]
    assert trains(model) == {"one"}


def test_several_adapters_in_use_train_together() -> None:
    model = with_adapters("one", "two", "three")
    model.base_model.set_adapter(["three", "one"])
    assert model.active_adapters == ["three", "one"]
    assert trains(model) == {"one", "three"}


def test_two_adapters_in_use_can_not_replace_the_same_module() -> None:
    model = with_adapters("one", "two", modules_to_save=["head"])
    model.add_adapter("three", config())
    with pytest.raises(ValueError, match="Only one adapter can be set at a time for ModulesToSaveWrapper"):
        model.base_model.set_adapter(["one", "two"])
    assert model.active_adapters == ["one"]
    assert trains(model) == {"one"}
    model.base_model.set_adapter(["one", "three"])
    assert trains(model) == {"one", "three"}


# -- modules trained in full


def test_a_module_trained_in_full_is_looked_up_in_the_copy_in_use() -> None:
    model = with_adapters("one", modules_to_save=["head"])
    model.add_adapter("two", config())
    wrapper: Any = model.get_submodule("base_model.model.head")
    assert wrapper.weight is wrapper.modules_to_save["one"].weight
    model.set_adapter("two")
    assert list(wrapper.modules_to_save) == ["one"]
    assert wrapper.weight is wrapper.original_module.weight
    assert wrapper.active_adapters == []
    model.set_adapter("one")
    with model.disable_adapter():
        assert wrapper.weight is wrapper.original_module.weight


# -- disabling


def test_disabled_is_the_base_and_nothing_trains_and_then_all_is_as_before() -> None:
    plain = run(Net().eval())
    model = with_adapters("one", "two", modules_to_save=["head"])
    scatter(model)
    before, trainable = run(model), set(sorted_trainable(model))
    with model.disable_adapter():
        assert torch.equal(run(model), plain)
        assert not sorted_trainable(model)
    assert torch.equal(run(model), before)
    assert set(sorted_trainable(model)) == trainable


def test_disabling_in_a_frozen_model_leaves_it_frozen() -> None:
    model = with_adapters("one", modules_to_save=["head"], inference_mode=True)
    assert not sorted_trainable(model)
    with model.disable_adapter():
        pass
    assert not sorted_trainable(model)


def test_disabling_within_disabling_keeps_to_the_outer_one() -> None:
    plain = run(Net().eval())
    model = with_adapters("one")
    with model.disable_adapter():
        with model.disable_adapter():
            pass
        assert torch.equal(run(model), plain)
        assert not sorted_trainable(model)
    assert trains(model) == {"one"}
    model.base_model.disable_adapter_layers()
    with model.disable_adapter():
        pass
    assert torch.equal(run(model), plain)
    model.base_model.enable_adapter_layers()
    assert not torch.equal(run(model), plain)


def test_an_error_inside_enables_again() -> None:
    model = with_adapters("one")
    before = run(model)
    with pytest.raises(KeyError), model.disable_adapter():
        raise KeyError
    assert torch.equal(run(model), before)


def test_layers_that_disagree_are_named_and_all_enabled_afterwards() -> None:
    model = with_adapters("one")
    before = run(model)
    layer: Any = model.get_submodule("base_model.model.c1")
    layer.enable_adapters(False)
    with (
        pytest.warns(
            UserWarning, match="contains some adapter layers that are enabled and others that are disabled"
        ),
        model.disable_adapter(),
    ):
        assert torch.equal(run(model), run(Net().eval()))
    assert torch.equal(run(model), before)


def test_switching_while_disabled_trains_the_new_adapter_and_only_once_enabled() -> None:
    model = with_adapters("one", "two", modules_to_save=["head"])
    model.base_model.disable_adapter_layers()
    model.set_adapter("two")
    assert not sorted_trainable(model)
    model.base_model.enable_adapter_layers()
    assert trains(model) == {"two"}
    model.base_model.disable_adapter_layers()
    model.set_adapter("one", inference_mode=True)
    model.base_model.enable_adapter_layers()
    assert not sorted_trainable(model)


# -- biases of the base


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_deleting_an_adapter_that_trained_biases_gives_the_base_its_own(bias: str) -> None:
    plain = run(Net().eval())
    model = with_adapters("one", bias=bias)
    scatter(model)
    with (
        pytest.warns(PeftWarning, match="does not produce the same output as the base model"),
        model.disable_adapter(),
    ):
        assert not torch.equal(run(model), plain)
    model.delete_adapter("one")
    assert torch.equal(run(model), plain)
    assert not sorted_trainable(model)
    model.add_adapter("two", config(bias=bias))
    model.set_adapter("two")
    scatter(model)
    assert torch.equal(run(model.unload()), plain)


# -- deleting


def leftovers(model: nn.Module, name: str) -> list[str]:
    """Where an adapter's name is still a key."""
    found = []
    for path, module in model.named_modules():
        for attribute, value in [*vars(module).items(), *module.named_children()]:
            keys = value.keys() if isinstance(value, (dict, nn.ModuleDict, nn.ParameterDict)) else value
            if (
                isinstance(keys, (type({}.keys()), list, set, tuple))
                and name in keys
                and "hook" not in attribute
            ):
                found.append(f"{path}.{attribute}")
    return found


def test_a_deleted_adapter_leaves_no_name_behind() -> None:
    model = with_adapters("one", "two", modules_to_save=["head"], lora_dropout=0.1)
    assert leftovers(model, "two")
    model.delete_adapter("two")
    assert leftovers(model, "two") == []
    assert not [name for name in model.state_dict() if "two" in name]


def test_deleting_the_adapter_in_use_turns_to_the_oldest() -> None:
    model = with_adapters("one", "two", "three")
    model.set_adapter("three")
    model.delete_adapter("two")
    assert model.active_adapters == ["three"]
    with pytest.warns(PeftWarning, match=r"Adapter three was active which is now deleted\. In use is one"):
        model.delete_adapter("three")
    assert (model.active_adapters, trains(model)) == (["one"], {"one"})
    model.delete_adapter("one")
    assert (model.active_adapters, list(model.peft_config)) == ([], [])
    assert torch.equal(run(model.base_model), run(Net().eval()))
    with pytest.raises(AdapterError, match="No adapter is in use"):
        _ = model.active_adapter
    model.add_adapter("new", config())
    model.set_adapter("new")
    assert model.active_adapter == "new"


def test_deleting_an_unknown_adapter_is_refused() -> None:
    with pytest.raises(ValueError, match="Adapter nobody does not exist"):
        with_adapters("one").delete_adapter("nobody")


def test_a_deleted_adapters_memory_is_free() -> None:
    model = with_adapters("one", "two")
    layer: Any = model.get_submodule("base_model.model.c1")
    pointer = id(layer.lora_A["two"].weight)
    model.delete_adapter("two")
    del layer
    gc.collect()
    assert not [
        o for o in gc.get_objects() if id(o) == pointer and isinstance(o, nn.Parameter) and o.shape == (2, 6)
    ]


# -- what it costs


class Count:
    """How often torch walks a model or touches a parameter's `requires_grad`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: Counter[str] = Counter()
        for owner, name in (
            (nn.Module, "named_modules"),
            (nn.Module, "named_parameters"),
            (nn.Module, "named_children"),
            (nn.Module, "train"),
            (torch.Tensor, "requires_grad_"),
            (nn.ModuleDict, "items"),
            (nn.ParameterDict, "items"),
        ):
            monkeypatch.setattr(owner, name, self._counted(f"{owner.__name__}.{name}", getattr(owner, name)))

    def _counted(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls[name] += 1
            return original(*args, **kwargs)

        return call

    def of(self, action: Callable[[], object]) -> Counter[str]:
        self.calls.clear()
        action()
        return Counter(self.calls)


def test_the_fiftieth_adapter_costs_what_the_third_did(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    model = with_adapters("a0", modules_to_save=["head"])
    model.eval().save_pretrained(tmp_path, selected_adapters=["a0"])
    model.add_adapter("a1", config(modules_to_save=["head"]))
    count = Count(monkeypatch)

    def costs(name: str) -> dict[str, Counter[str]]:
        return {
            "add": count.of(lambda: model.add_adapter(name, config(modules_to_save=["head"]))),
            "set": count.of(lambda: model.set_adapter(name)),
            "back": count.of(lambda: model.set_adapter("a1")),
            "load": count.of(lambda: model.load_adapter(tmp_path / "a0", f"{name}-loaded")),
            "save": count.of(lambda: model.save_pretrained(tmp_path / name, selected_adapters=[name])),
            "delete": count.of(lambda: model.delete_adapter(f"{name}-loaded")),
        }

    third = costs("a2")
    for number in range(3, 50):
        model.add_adapter(f"a{number}", config(modules_to_save=["head"]))
    assert costs("fiftieth") == third


def test_the_model_is_usable_in_the_ways_people_hold_it() -> None:
    model = with_adapters("one")
    assert model.base_model.model is model.get_base_model()
    assert model.active_peft_config is model.peft_config["one"] is model.base_model.peft_config["one"]
    assert model.modules_to_save is None
    twin = copy.deepcopy(model)
    scatter(twin)
    assert not torch.equal(run(twin), run(model))
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in model.parameters()}
    twin.set_adapter("one", inference_mode=True)
    assert sorted_trainable(model) and not sorted_trainable(twin)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.train().eval().requires_grad_(False).double()
