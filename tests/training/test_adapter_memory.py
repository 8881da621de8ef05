"""Sizes that a recipe asks for are compared with the free memory before anything is allocated."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
from tests.reference.strict_device import in_own_process, strict_device
from tests.store.tiny import tiny_model

from manytune.errors import ShortMemoryError
from manytune.model.attach import get_peft_model
from manytune.training import adapter_memory
from manytune.training.adapter_memory import require_fitting
from manytune.training.method_recipe import MethodRecipe

_METHODS: list[dict[str, Any]] = [
    {"name": "lora", "r": 4},
    {"name": "lora", "r": 4, "use_dora": True, "target_modules": "all-linear"},
    {"name": "adalora", "init_r": 4, "target_r": 2},
    {"name": "vera", "r": 8},
    {"name": "ia3"},
    {"name": "bottleneck", "bottleneck_size": 4},
    {"name": "prompt-tuning", "num_virtual_tokens": 3},
    {"name": "prefix-tuning", "num_virtual_tokens": 3},
    {"name": "p-tuning", "num_virtual_tokens": 3, "encoder_hidden_size": 5},
    {"name": "trainable-tokens", "token_indices": [1, 2]},
    {"name": "full"},
]


def _method(options: dict[str, Any]) -> MethodRecipe:
    return MethodRecipe.model_validate(options)


def _counted_on_a_device() -> list[float | None]:
    with strict_device() as device:
        model = tiny_model().to(device)
        return [adapter_memory._bytes_of(model, _method(one), "CAUSAL_LM") for one in _METHODS]


def test_on_another_device_as_much_is_counted() -> None:
    with in_own_process() as run:
        counted = run(_counted_on_a_device)
    assert counted == [adapter_memory._bytes_of(tiny_model(), _method(one), "CAUSAL_LM") for one in _METHODS]


@pytest.mark.parametrize("options", _METHODS, ids=lambda options: "-".join(map(str, options.values())))
def test_what_is_counted_is_what_is_made_and_the_base_stays_as_it_was(options: dict[str, Any]) -> None:
    model = tiny_model()
    before = {name: (id(one), one.requires_grad) for name, one in model.named_parameters()}
    counted = adapter_memory._bytes_of(model, _method(options), "CAUSAL_LM")
    assert {name: (id(one), one.requires_grad) for name, one in model.named_parameters()} == before
    mine = {id(one) for one in chain(model.parameters(), model.buffers())}
    attached = get_peft_model(model, _method(options).peft_config("CAUSAL_LM"))
    new = [one for one in chain(attached.parameters(), attached.buffers()) if id(one) not in mine]
    made = sum(one.numel() * one.element_size() * (2 if one.requires_grad else 1) for one in new)
    if options["name"] == "vera":  # the matrices that all layers share are bounded by the method itself
        assert 0 < counted <= made
    else:
        assert counted == made


@pytest.mark.parametrize(
    ("options", "key", "largest"),
    [
        ({"name": "lora", "r": 100_000_000}, "r: 100,000,000", "1,024"),
        ({"name": "lora", "r": 10**30}, f"r: {10**30:,}", "1,024"),
        ({"name": "lora", "rank_pattern": {"q_proj": 10**9}}, "rank_pattern.q_proj: 1,000,000,000", "2,040"),
        ({"name": "adalora", "init_r": 10**9}, "init_r: 1,000,000,000", ""),
        ({"name": "bottleneck", "bottleneck_size": 10**9}, "bottleneck_size: 1,000,000,000", ""),
        (
            {"name": "prompt-tuning", "num_virtual_tokens": 10**9},
            "num_virtual_tokens: 1,000,000,000",
            "8,192",
        ),
        (
            {"name": "prefix-tuning", "num_virtual_tokens": 10**9},
            "num_virtual_tokens: 1,000,000,000",
            "2,048",
        ),
        (
            {"name": "p-tuning", "num_virtual_tokens": 4, "encoder_hidden_size": 10**9},
            "encoder_hidden_size: 1,000,000,000",
            "",
        ),
    ],
)
def test_a_size_that_cannot_fit_is_named_with_what_would(
    options: dict[str, Any], key: str, largest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_memory, "free_memory", lambda: 1 << 20)
    with pytest.raises(ShortMemoryError) as refused:
        require_fitting(tiny_model(), _method(options), "CAUSAL_LM")
    said = str(refused.value)
    assert said.startswith(f"method.{key} is too large: ")
    assert "1 MiB are free" in said
    assert f"Lower it: up to {largest}" in said
    assert " would fit" in said


def test_a_rank_is_compared_with_the_layers_of_the_base(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_memory, "free_memory", lambda: 1 << 20)
    with pytest.raises(ShortMemoryError, match="a rank above 16 adds nothing to the layers of this base"):
        require_fitting(tiny_model(), _method({"name": "lora", "r": 10**8}), "CAUSAL_LM")


def test_what_fits_or_cannot_be_known_is_let_through(monkeypatch: pytest.MonkeyPatch) -> None:
    require_fitting(tiny_model(), _method({"name": "lora", "r": 64}), "CAUSAL_LM")
    monkeypatch.setattr(adapter_memory, "free_memory", lambda: None)
    require_fitting(tiny_model(), _method({"name": "lora", "r": 10**8}), "CAUSAL_LM")


def test_a_method_without_a_size_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_memory, "free_memory", lambda: 10)
    with pytest.raises(ShortMemoryError, match=r"method: its weights .* Adapt fewer modules"):
        require_fitting(tiny_model(), _method({"name": "ia3"}), "CAUSAL_LM")
