"""Training on from an adapter: its method, its weights, its base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.methods.test_registry_contract import EXAMPLES, LLAMA
from tests.random_cases import some
from tests.store.tiny import save_tiny_base
from tests.training.tiny_run import recipe_content

from manytune.errors import BaseMismatchError, RecipeError, RunError, StoreError
from manytune.methods.registry import methods
from manytune.store.base import load_base
from manytune.store.store import AdapterStore
from manytune.training.inputs import attach_method, read_inputs
from manytune.training.recipe import load_recipe, recipe_from
from manytune.training.run import TrainedRun, run
from manytune.training.starting_adapter import with_its_method

LORA = {"name": "lora", "r": 3, "target_modules": ["q_proj", "v_proj"]}


#: A method of each way of training: layers, with a schedule, whole weights, tables, soft prompts, and two in one. The
#: others are added in `make test-deep`.
OF_EACH_KIND = ("lora", "adalora", "full", "trainable-tokens", "p-tuning", "prefix-tuning", "combined")


def trained(directory: Path, method: dict[str, Any] = LORA, *, max_steps: int = 1) -> TrainedRun:
    """A step on a tiny base."""
    content = recipe_content(directory, max_steps=max_steps, warmup=0)
    return run(recipe_from({**content, "method": method}))


def onward(directory: Path, adapter: Path | str, **changes: Any) -> dict[str, Any]:
    """A recipe that starts from an adapter, without a method."""
    content = recipe_content(directory, max_steps=1, warmup=0)
    del content["method"]
    return {**content, "adapter": str(adapter), "output": str(directory / "onward"), **changes}


def options(name: str) -> dict[str, Any]:
    example = EXAMPLES[name]
    found = {**example.options, **example.by_family.get(LLAMA.name, {})}
    if name == "trainable-tokens":
        return {"token_indices": [3, 4]}
    return {key: value for key, value in found.items() if key != "total_step"}


@pytest.mark.filterwarnings("ignore:.*holds the computed virtual tokens")  # of p-tuning's network
@pytest.mark.parametrize("name", some([name for name in methods() if name in EXAMPLES], *OF_EACH_KIND))
def test_every_method_trains_on_from_its_adapter_and_never_the_base(name: str, tmp_path: Path) -> None:
    steps = 4 if name == "adalora" else 1  # which has a schedule of its own
    first = trained(tmp_path, {"name": name, **options(name)}, max_steps=steps)
    onward_again = onward(tmp_path, first.directory)
    onward_again["training"]["max_steps"] = steps
    inputs = read_inputs(with_its_method(recipe_from(onward_again)))
    base = {key: value.clone() for key, value in inputs.base.model.state_dict().items()}
    second = run(recipe_from(onward_again), base=inputs.base)
    for key, value in inputs.base.model.state_dict().items():
        assert torch.equal(value, base[key])
    start, end = (load_file(one.adapter / "adapter_model.safetensors") for one in (first, second))
    assert start.keys() == end.keys()
    assert any(not torch.equal(start[key], end[key]) for key in start)
    assert json.loads((second.adapter / "adapter_config.json").read_text())["peft_type"] == (
        methods()[name].peft_type
    )


def test_it_starts_with_the_adapter_s_weights_and_options(tmp_path: Path) -> None:
    first = trained(tmp_path)
    store = AdapterStore(tmp_path / "store")
    base = load_base(recipe_content(tmp_path)["base"], dtype="float32")
    store.add(first.adapter, base=base, name="mine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MANYTUNE_STORE", str(tmp_path / "store"))
        recipe = with_its_method(recipe_from(onward(tmp_path, "mine")))
        model = attach_method(read_inputs(recipe))
    saved = load_file(first.adapter / "adapter_model.safetensors")
    for key, value in saved.items():
        assert torch.equal(model.get_parameter(key.replace(".weight", ".default.weight")), value)
    assert recipe.method.model_dump() | {"target_modules": None} == {
        **{"name": "lora", "r": 3, "target_modules": None}
    }


def test_the_run_keeps_a_recipe_that_can_be_run_again(tmp_path: Path) -> None:
    first = trained(tmp_path)
    second = run(recipe_from(onward(tmp_path, first.directory)))
    kept = load_recipe(second.directory / "recipe.yaml")
    assert kept.adapter == str(first.directory)
    assert with_its_method(kept) == kept


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"name": "ia3"}, r"method\.name: expected lora, the method of the adapter .* found 'ia3'"),
        ({"r": 4}, r"method\.r: expected 3, as in the adapter .*; found 4\. Leave it out"),
        ({"target_modules": ["k_proj"]}, r"method\.target_modules: expected \['q_proj', 'v_proj'\]"),
    ],
)
def test_another_method_or_option_is_a_conflict(tmp_path: Path, method: dict[str, Any], message: str) -> None:
    first = trained(tmp_path)
    assert with_its_method(recipe_from(onward(tmp_path, first.directory, method=LORA))).method.name == "lora"
    with pytest.raises(RecipeError, match=message):
        run(recipe_from(onward(tmp_path, first.directory, method=method)))


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    first = trained(tmp_path)
    other = str(save_tiny_base(tmp_path / "other", seed=1))
    with pytest.raises(BaseMismatchError, match="trained on another base"):
        run(recipe_from(onward(tmp_path, first.directory, base=other)))


def test_an_adapter_that_isn_t_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        run(recipe_from(onward(tmp_path, "no/such/adapter")))


def test_a_resumed_run_must_find_the_adapter_that_it_started_from(tmp_path: Path) -> None:
    first = trained(tmp_path / "first")
    content = onward(tmp_path, first.directory)
    content["training"] |= {"max_steps": 3, "checkpoint_every": 1}

    class StoppedError(Exception):
        pass

    def stop(report: Any) -> None:
        if report.step == 2:
            raise StoppedError

    with pytest.raises(StoppedError):
        run(recipe_from(content), report=stop)
    run(
        recipe_from({**recipe_content(tmp_path / "first", max_steps=1, seed=1, warmup=0), "method": LORA}),
        overwrite=True,
    )
    with pytest.raises(RunError, match="the adapter that it started from changed"):
        run(recipe_from(content), resume=True)
