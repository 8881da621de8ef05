"""Which numbers a training computes with: what `auto` chooses, what bfloat16 learns, and what stays in float32."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.methods.test_registry_contract import disturb
from tests.store.tiny import save_tiny_base, tiny_model
from tests.training.test_run import StoppedError, changed, recipe, stop_after
from tests.training.tiny_run import as_rows, sequences, settings
from torch import nn

import manytune
from manytune.errors import RunError, StoreError
from manytune.store.adapters import open_adapter
from manytune.store.base import load_base
from manytune.store.verification import verify_adapter
from manytune.training.dry_run import estimate
from manytune.training.loop.train import train_model
from manytune.training.precision import precision, resolve_dtype
from manytune.training.recipe import Recipe, TrainingRecipe, load_recipe
from manytune.training.run import run

HALF = torch.bfloat16


def set_gpu(monkeypatch: pytest.MonkeyPatch, *, native: bool) -> None:
    """Let torch say that there is a GPU, which computes bfloat16 itself or emulates it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation
    )


def dtype_of(wanted: Recipe) -> str:
    return resolve_dtype(wanted).training.dtype


# -- what is chosen


def test_auto_is_float32_on_a_cpu(tmp_path: Path) -> None:
    assert recipe(tmp_path).training.dtype == "auto"
    assert dtype_of(recipe(tmp_path)) == "float32"


@pytest.mark.parametrize(("native", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_auto_is_bfloat16_on_a_gpu_that_computes_it_natively(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, native: bool, expected: str
) -> None:
    set_gpu(monkeypatch, native=native)
    assert dtype_of(recipe(tmp_path)) == expected
    assert dtype_of(changed(recipe(tmp_path), training={"device": "cpu"})) == "float32"
    assert dtype_of(changed(recipe(tmp_path), training={"dtype": "float32"})) == "float32"


def test_auto_over_a_base_that_is_loaded_is_that_ones_dtype(tmp_path: Path) -> None:
    wanted = recipe(tmp_path)
    for dtype, name in ((HALF, "bfloat16"), (torch.float32, "float32")):
        assert resolve_dtype(wanted, base=tiny_model().to(dtype)).training.dtype == name


def test_a_run_says_what_was_chosen_and_keeps_it(tmp_path: Path) -> None:
    wanted = recipe(tmp_path)
    said: list[str] = []
    finished = run(wanted, notify=said.append)
    assert "dtype: float32 (auto: it trains on a CPU)" in said
    assert load_recipe(Path(wanted.output) / "recipe.yaml").training.dtype == "float32"
    for name in ("environment.json", "scores.json"):
        kept = json.loads((Path(wanted.output) / name).read_text())
        assert (kept["dtype"], kept["activations"], kept["tf32"]) == ("float32", "float32", False)
    manifest = open_adapter(finished.adapter).manifest
    assert manifest is not None and manifest.recipe is not None
    assert manifest.recipe["training"]["dtype"] == "float32"


def test_a_dry_run_says_it_too(tmp_path: Path) -> None:
    said: list[str] = []
    estimated = estimate(changed(recipe(tmp_path), training={"dtype": "bfloat16"}), notify=said.append)
    line = "products with the base's weights in bfloat16; adapters, hidden states and optimizer in float32"
    assert estimated.dtype == line
    assert f"dtype: {line}" in said


def test_a_run_isnt_resumed_in_another_dtype(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = recipe(tmp_path)
    with pytest.raises(StoppedError):
        run(wanted, report=stop_after(3))
    with monkeypatch.context() as patch:
        set_gpu(patch, native=True)
        with pytest.raises(RunError, match=r"training\.dtype was 'float32' and is 'bfloat16'"):
            run(wanted, resume=True)
    assert run(wanted, resume=True).resumed_from == 2


# -- what is learned


def train(model: nn.Module, steps: int = 10, **changes: Any) -> Any:
    usual = {"max_steps": steps, "batch_size": 8, "learning_rate": 2e-4, "batching": "padded"}
    rows = as_rows(sequences(24), sequences(16, seed=1))
    return train_model(model, rows, settings(**{**usual, **changes}), measure_flops=False)


def learned(dtype: torch.dtype, activations: str, **changes: Any) -> float:
    """How far ten steps bring the loss down, over a base whose weights are bfloat16 numbers."""
    base = wide_base().to(HALF).to(dtype)
    torch.manual_seed(0)
    config = manytune.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    model = manytune.get_peft_model(base, config)
    name = "bfloat16" if dtype == HALF else "float32"
    found = train(model, dtype=name, activations=activations, **changes)
    assert found.validation_loss is not None
    return float(found.validation_reports[0].validation_loss - found.validation_loss)


def wide_base() -> nn.Module:
    """A base whose hidden states are large next to what a young adapter adds, as a trained one's are."""
    model = tiny_model()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(8)
    return model


def test_a_bfloat16_base_learns_what_a_float32_base_learns() -> None:
    expected = learned_in_float32()
    ours, rounded = learned(HALF, "float32"), learned(HALF, "base")
    assert expected > 0
    assert ours == pytest.approx(expected, rel=0.05)
    assert rounded < 0.8 * expected, "HF PEFT's way, by its name"


@functools.cache
def learned_in_float32() -> float:
    return learned(torch.float32, "float32")


@pytest.mark.filterwarnings("ignore")  # torch's compiler trips over deprecations of its own
@pytest.mark.parametrize(
    "changes",
    [
        {"batching": "padding-free"},
        {"batching": "shared-prefix"},
        {"gradient_checkpointing": True},
        {"compile": True},
        {"accumulation": 2, "batch_size": 4},
    ],
    ids=str,
)
def test_that_holds_for_every_way_of_running_it(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is computed in which dtype is decided before the compiler's later stages, which take most of the time.
    traced = functools.partialmethod(nn.Module.compile, backend="eager")
    monkeypatch.setattr(nn.Module, "compile", traced)
    assert learned(HALF, "float32", **changes) == pytest.approx(learned_in_float32(), rel=0.05)


def test_upper_layers_alone_learn_the_same_with_the_lower_ones_results_kept() -> None:
    def after(*, cache_frozen: bool) -> float:
        torch.manual_seed(0)
        config = manytune.LoraConfig(r=2, layers_to_transform=[1], task_type="CAUSAL_LM")
        model = manytune.get_peft_model(wide_base().to(HALF), config)
        found = train(model, dtype="bfloat16", cache_frozen=cache_frozen, learning_rate=1e-2)
        assert (found.cache is not None) is cache_frozen
        return float(found.validation_loss)

    assert after(cache_frozen=True) == pytest.approx(after(cache_frozen=False), rel=1e-3)


# -- the base's own weights


def half(directory: Path, method: dict[str, Any], **training: Any) -> Recipe:
    content = recipe(directory).model_dump(mode="json")
    content["method"] = method
    content["training"].update({"dtype": "bfloat16", "learning_rate": 2e-5, **training})
    return Recipe.model_validate(content)


@pytest.mark.parametrize("method", ["full", "selective"])
def test_the_bases_own_weights_train_in_float32(tmp_path: Path, method: str) -> None:
    options = {"full": {}, "selective": {"parameters": ["layernorm", "mlp"]}}[method]
    wanted = half(tmp_path, {"name": method, **options})
    finished = run(wanted)
    saved = load_file(finished.adapter / "adapter_model.safetensors")
    base = dict(load_base(wanted.base, dtype="bfloat16").model.named_parameters())
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    moved = total = 0
    for name, tensor in saved.items():
        before = base[name.removeprefix("base_model.model.")].detach().float()
        moved += int((tensor != before).sum())
        total += tensor.numel()
    assert moved > 0.95 * total, "in bfloat16 a third"


def test_gradients_of_the_bases_own_weights_arrive_in_float32_and_are_close_to_float32s() -> None:
    def gradients(dtype: torch.dtype) -> dict[str, torch.Tensor]:
        base = tiny_model().to(HALF).to(dtype)
        model = manytune.get_peft_model(base, manytune.FullConfig(task_type="CAUSAL_LM"))
        model.tuner.hold_float32()
        ids = torch.arange(3, 12)[None]
        products = "bfloat16" if dtype == HALF else "float32"
        with precision(model, TrainingRecipe(dtype=products)):
            model(input_ids=ids, labels=ids).loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    found, expected = gradients(HALF), gradients(torch.float32)
    assert found.keys() == expected.keys() and len(found) > 10
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32
        assert (gradient - expected[name]).norm() <= 0.03 * expected[name].norm(), name


def test_products_with_weights_that_train_are_in_bfloat16() -> None:
    model = manytune.get_peft_model(tiny_model().to(HALF), manytune.FullConfig(task_type="CAUSAL_LM"))
    model.tuner.hold_float32()
    layer: Any = model.get_submodule("base_model.model.model.layers.0.mlp.up_proj")
    x = torch.randn(3, 16)
    with precision(model, TrainingRecipe(dtype="bfloat16")), torch.no_grad():
        assert torch.equal(layer(x), nn.functional.linear(x.to(HALF), layer.weight.to(HALF)).float())
    with precision(model, TrainingRecipe(dtype="float32")), torch.no_grad():
        assert torch.equal(layer(x), nn.functional.linear(x, layer.weight))


@pytest.mark.parametrize("keep_base", [True, False])
def test_a_resumed_run_of_them_ends_with_the_same_bits(tmp_path: Path, keep_base: bool) -> None:
    method = {"name": "full", "keep_base": keep_base}
    whole = run(half(tmp_path / "whole", method))
    parts = half(tmp_path / "parts", method)
    with pytest.raises(StoppedError):
        run(parts, report=stop_after(3))
    resumed = run(parts, resume=True)
    assert resumed.resumed_from == 2
    one, other = (load_file(r.adapter / "adapter_model.safetensors") for r in (whole, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_base_for_several_runs_is_given_back_in_its_own_bits(tmp_path: Path) -> None:
    wanted = half(tmp_path, {"name": "full"})
    base = load_base(wanted.base, dtype="bfloat16")
    before = copy.deepcopy(base.model.state_dict())
    run(wanted, base=base)
    after = base.model.state_dict()
    assert all(after[name].dtype == HALF and torch.equal(after[name], t) for name, t in before.items())


def test_they_arent_trained_in_bfloat16(tmp_path: Path) -> None:
    with pytest.raises(
        RunError, match=r"method full trains weights of the base itself.*training\.activations"
    ):
        run(half(tmp_path, {"name": "full"}, activations="base"))


def test_merging_and_detaching_gives_a_model_in_the_bases_dtype() -> None:
    model = manytune.get_peft_model(
        tiny_model().to(HALF), manytune.SelectiveConfig(parameters=["layernorm"], task_type="CAUSAL_LM")
    )
    model.tuner.hold_float32()
    merged = model.merge_and_unload()
    assert {parameter.dtype for parameter in merged.parameters()} == {HALF}
    merged(input_ids=torch.arange(3, 9)[None])


# -- TF32


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("tf32", [False, True])
def test_float32_products_are_tf32_on_a_gpu_if_the_recipe_says_so(
    monkeypatch: pytest.MonkeyPatch, gpu: bool, tf32: bool
) -> None:
    if gpu:
        set_gpu(monkeypatch, native=True)
    model = tiny_model()
    before = torch.get_float32_matmul_precision()
    with precision(model, TrainingRecipe(dtype="float32", tf32=tf32)):
        assert torch.get_float32_matmul_precision() == ("high" if gpu and tf32 else before)
    assert torch.get_float32_matmul_precision() == before


def test_a_key_for_gpus_is_said_to_do_nothing_on_a_cpu(tmp_path: Path) -> None:
    said: list[str] = []
    estimate(changed(recipe(tmp_path), training={"tf32": True}), notify=said.append)
    assert "training.tf32 has no effect on a CPU" in said


# -- answers


def test_on_a_bfloat16_base_too_an_untrained_adapter_is_recognised(tmp_path: Path) -> None:
    """Base and adapter are asked with the same rounding, which alone makes another difference."""
    base = load_base(str(save_tiny_base(tmp_path / "base")), dtype="bfloat16")
    config = manytune.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    model = manytune.get_peft_model(base.model, config)
    model.save_pretrained(str(tmp_path / "new"))
    disturb(model)
    model.save_pretrained(str(tmp_path / "trained"))
    model.unload()
    with pytest.raises(StoreError, match="changes nothing"):
        verify_adapter(tmp_path / "new", base=base)
    assert verify_adapter(tmp_path / "trained", base=base).effect


@contextmanager
def counted(model: nn.Module) -> Iterator[set[torch.dtype]]:
    """The dtypes of what the layers give meanwhile."""
    seen: set[torch.dtype] = set()
    layers = [module for name, module in model.named_modules() if name.endswith("mlp")]
    handles = [m.register_forward_hook(lambda *call: seen.add(call[-1].dtype)) for m in layers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize(("activations", "expected"), [("float32", torch.float32), ("base", HALF)])
def test_an_adapter_answers_with_the_hidden_states_that_it_was_trained_with(
    tmp_path: Path, activations: str, expected: torch.dtype
) -> None:
    from manytune.cli.chosen import choose
    from manytune.store.attaching import attached

    wanted = half(tmp_path, {"name": "lora", "r": 2, "target_modules": "all-linear"}, activations=activations)
    (chosen,) = choose([str(run(wanted).directory)], "store")
    base = load_base(wanted.base, dtype="bfloat16")
    for path in (None, chosen.stored.path):
        with (
            attached(base, path, activations=chosen.activations) as model,
            counted(model) as seen,
            torch.no_grad(),
        ):
            model(input_ids=torch.arange(3, 9)[None])
        assert seen == {expected}
