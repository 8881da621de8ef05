"""Two processes that train together, over gloo, come to what one does; and a run goes on with any number of them."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.engine.encoder_decoder.bases import t5
from tests.random_cases import DEEP
from tests.store.tiny import LETTERS, save_tiny_mixture
from tests.training.distributed.together import together
from tests.training.distributed.trainings import (
    METHODS,
    OTHER_METHODS,
    Trained,
    trained,
    trained_alone,
)
from tests.training.tiny_classifiers import classifier_content
from tests.training.tiny_run import recipe_content

from manytune.errors import PeftWarning, RunError
from manytune.training.agreed_checkpoint import agreed_checkpoint
from manytune.training.distributed.failures import said_once
from manytune.training.distributed.processes import ALONE, Processes
from manytune.training.loop.validation import ValidationScores
from manytune.training.recipe import Recipe, recipe_from
from manytune.training.resume import latest_checkpoint
from manytune.training.run import run

# float32 rounds sums by where they are cut; each step's loss is about 3, and its last bit 2.4e-7.
LOSS, WEIGHT = 1e-6, 1e-5
SHORT: dict[str, Any] = {"max_steps": 5, "warmup": 0.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "whole batches dealt": {"accumulation": 2},
    "batches divided by rows": {"accumulation": 3},
    "a step with less than its accumulation": {"batch_size": 3, "accumulation": 2},
    "fewer rows than processes": {"batch_size": 1, "max_steps": 3},
    "a budget of tokens": {"token_budget": 60},
    "prefixes in one batch": {"group_prefixes": True, "batch_size": 6},
    "padded": {"batching": "padded", "max_steps": 3},
    "the best step": {"keep": "best", "eval_every": 1},
    "recomputed activations": {"gradient_checkpointing": True, "max_steps": 3},
    "half an epoch": {"max_steps": None, "epochs": 0.5},
}
DROPOUT: dict[str, Any] = {"options": {"lora_dropout": 0.5}, "max_steps": 6}
CONTINUED: dict[str, Any] = {"max_steps": 8}
#: Of each method: four epochs, or with LoRA two, and one with others.
WHOLE: dict[str, dict[str, Any]] = {
    name: {} if DEEP else {"max_steps": 10} if name == "lora" else SHORT for name in METHODS
}
#: Methods and settings under `sharding: full`: all of them, and for 20 steps, in `make test-deep`.
_AT_ONCE = {
    "accumulation": 2,
    "gradient_checkpointing": True,
    "max_grad_norm": 0.01,
    "keep": "best",
    "eval_every": 2,
}
SHARDED: dict[str, tuple[str, dict[str, Any]]] = {
    "several settings at once": ("lora", {**SHORT, **_AT_ONCE}),
    "fewer rows than processes": ("lora", {**SHORT, **VARIANTS["fewer rows than processes"]}),
    **{name: (name, {**SHORT, "max_steps": 3}) for name in ("dora", "prefix", "full")},
}
if DEEP:
    SHARDED |= {name: (name, {}) for name in METHODS}
    SHARDED |= {name: ("lora", {**SHORT, **changes}) for name, changes in VARIANTS.items()}
    SHARDED |= {name: (name, {**SHORT, "max_steps": 3}) for name in OTHER_METHODS}


#: Whole runs of recipes under `sharding: full`, by what is special about their bases.
RUNS = ("text", *(("bfloat16", "mixture", "classifier", "encoder-decoder") if DEEP else ()))


def first_weight(model: torch.nn.Module) -> Mapping[str, float]:
    return {"w": float(next(p for p in model.parameters() if p.requires_grad).detach().abs().sum())}


def on_two(processes: Processes, directory: Path) -> dict[str, Any]:
    """Everything for which two processes are started."""
    found: dict[str, Any] = {name: trained(processes, name, **changes) for name, changes in WHOLE.items()}
    found |= {name: trained(processes, **{**SHORT, **changes}) for name, changes in VARIANTS.items()}
    for name, (method, changes) in SHARDED.items():
        found[f"sharded {name}"] = trained(processes, method, sharding="full", **changes)
    trained(processes, checkpoints=directory / "sharded", stop_after=4, sharding="full", **CONTINUED)
    for kind in RUNS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PeftWarning)  # a mixture's router stays frozen
            done = run(recipe_of_a_run(kind, directory / "runs"), processes=processes)
        found[f"run {kind}"] = done.training.validation_loss
    found["float64"] = trained(processes, dtype=torch.float64, **SHORT)
    scores = ValidationScores(first_weight, {"w": True})
    found["scores"] = trained(
        processes, scores=scores, validation={"scores": ("w",), "every": 2}, max_steps=4, eval_every=2
    )
    found["dropout"] = trained(processes, **DROPOUT)
    for stop_after in (3, None):
        found["dropout, resumed"] = trained(
            processes, checkpoints=directory / "dropout", stop_after=stop_after, **DROPOUT
        )
    trained(processes, checkpoints=directory / "continued", stop_after=4, **CONTINUED)
    found["continues"] = [
        continues_from(processes, directory / "continued", elsewhere)
        for elsewhere in (directory / "continued", directory / "not-here", directory / "sharded")
    ]
    found["masks"] = [state.sum().item() for state in processes.gather(torch.rand(4))]
    try:
        with said_once(processes):
            raise RunError("the same in both")
    except (RunError, SystemExit) as error:
        found["error"] = type(error).__name__
    return found


def continues_from(processes: Processes, firsts: Path, others: Path) -> str:
    """What this process would continue from where the first sees one directory and the others see another."""
    own = firsts if processes.is_first else others
    try:
        found = agreed_checkpoint(latest_checkpoint(own) if processes.is_first else None, own, processes)
    except RunError as error:
        return str(error)
    return "" if found is None else str(found.path)


def on_three(processes: Processes, directory: Path) -> None:
    for name, sharding in (("continued", "none"), ("sharded", "full")):
        there = directory / f"{name}-on-three"
        trained(processes, checkpoints=there, stop_after=6, sharding=sharding, **CONTINUED)


def recipe_of_a_run(kind: str, directory: Path, sharding: str = "full") -> Recipe:
    where = directory / kind
    settings = {"learning_rate": 1e-3, "epochs": 1, "sharding": sharding}
    content = (
        classifier_content(where, **settings) if kind == "classifier" else recipe_content(where, **settings)
    )
    content["method"] = {"name": "lora", "r": 2, "target_modules": "all-linear"}
    if kind == "bfloat16":
        content["training"]["dtype"] = kind
    if kind == "mixture":
        content["base"] = str(save_tiny_mixture(where / "mixture"))
    if kind == "encoder-decoder":
        t5(vocab_size=len(LETTERS) + 3, eos_token_id=0, dropout_rate=0.0).save_pretrained(where / "base")
    content["output"] = str(where / f"run-{sharding}")
    return recipe_from(content)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the first steps of a run on one process."""
    found = tmp_path_factory.mktemp("runs")
    trained(ALONE, checkpoints=found / "continued", stop_after=2, **CONTINUED)
    shutil.copytree(found / "continued", found / "sharded")
    for kind in RUNS:
        recipe_of_a_run(kind, found / "runs")
    return found


@pytest.fixture(scope="module")
def both(directory: Path) -> list[dict[str, Any]]:
    return together(2, on_two, directory)


def alone(name: str, changes: dict[str, Any]) -> Trained:
    """The same on one process, once for all that it is compared with."""
    key = repr((name, sorted(changes.items())))
    if key not in _ALONE:
        _ALONE[key] = trained_alone(name, **changes)
    return _ALONE[key]


_ALONE: dict[str, Trained] = {}


def assert_same(found: Trained, expected: Trained, *, loss: float = LOSS, weight: float = WEIGHT) -> None:
    assert found.rates == expected.rates
    assert found.tokens == expected.tokens
    assert found.norms == pytest.approx(expected.norms, rel=1e-4)
    assert found.losses == pytest.approx(expected.losses, abs=loss, rel=0)
    assert found.validations == pytest.approx(expected.validations, abs=loss, rel=0)
    assert found.weights.keys() == expected.weights.keys()
    for name, value in found.weights.items():
        np.testing.assert_allclose(value, expected.weights[name], atol=weight, rtol=0)


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_train_what_one_does(name: str, both: list[dict[str, Any]]) -> None:
    expected = alone(name, WHOLE[name])
    steps = WHOLE[name].get("max_steps", 20)
    assert len(expected.losses) == steps
    assert_same(both[0][name], expected)
    assert both[0][name].epochs == pytest.approx(expected.epochs)
    assert both[0][name].epochs[-1] == steps / 5
    for weight, value in both[1][name].weights.items():  # both end with the same bits
        assert np.array_equal(value, both[0][name].weights[weight])


@pytest.mark.parametrize("name", VARIANTS)
def test_two_processes_take_the_steps_of_one_however_batches_are_made(
    name: str, both: list[dict[str, Any]]
) -> None:
    assert_same(both[0][name], alone("lora", {**SHORT, **VARIANTS[name]}))


@pytest.mark.parametrize("name", SHARDED)
def test_two_processes_that_share_the_weights_train_what_one_does(
    name: str, both: list[dict[str, Any]]
) -> None:
    method, changes = SHARDED[name]
    for found in both:
        assert_same(found[f"sharded {name}"], alone(method, changes))


@pytest.mark.parametrize("kind", RUNS)
@pytest.mark.filterwarnings("ignore::manytune.errors.PeftWarning")  # a mixture's router stays frozen
def test_a_run_that_shares_the_weights_writes_the_adapter_of_one_that_does_not(
    kind: str, directory: Path, both: list[dict[str, Any]]
) -> None:
    by_itself = run(recipe_of_a_run(kind, directory / "runs", "none"))
    # bfloat16 rounds each product.
    loss, weight = (1e-2, 1e-3) if kind == "bfloat16" else (LOSS, WEIGHT)
    expected = by_itself.training.validation_loss
    assert [found[f"run {kind}"] for found in both] == pytest.approx([expected] * 2, abs=loss)
    ours, theirs = (
        load_file(directory / "runs" / kind / f"run-{sharding}" / "adapter" / "adapter_model.safetensors")
        for sharding in ("full", "none")
    )
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], atol=weight, rtol=0)


def test_in_float64_two_processes_differ_from_one_by_its_rounding(both: list[dict[str, Any]]) -> None:
    assert_same(both[0]["float64"], trained_alone(dtype=torch.float64, **SHORT), weight=1e-12)


def test_scores_are_measured_by_the_first_process_and_known_to_all(both: list[dict[str, Any]]) -> None:
    first, second = (found["scores"].scores for found in both)
    assert first == second and len(first) == 3 and all(score["w"] > 0 for score in first)


def test_dropout_draws_other_masks_in_each_process(both: list[dict[str, Any]]) -> None:
    assert both[0]["masks"][0] != both[0]["masks"][1]


def test_a_run_with_dropout_resumed_on_as_many_processes_ends_with_the_same_bits(
    both: list[dict[str, Any]],
) -> None:
    whole, resumed = both[0]["dropout"], both[0]["dropout, resumed"]
    assert len(resumed.losses) == 4  # it stopped in its third step, and went on after the second
    for name, value in whole.weights.items():
        assert np.array_equal(value, resumed.weights[name])


def test_a_checkpoint_is_continued_on_two_processes_on_three_and_on_one(
    directory: Path, both: list[dict[str, Any]]
) -> None:
    expected = trained_alone(**CONTINUED)
    for name in ("continued", "sharded"):
        shutil.copytree(directory / name, directory / f"{name}-on-three")
    together(3, on_three, directory, a_machine_each=True)
    for name, steps in (("continued", 5), ("sharded", 5), ("continued-on-three", 3), ("sharded-on-three", 3)):
        found = trained_alone(checkpoints=directory / name, **CONTINUED)
        assert found.losses == pytest.approx(expected.losses[-steps:], abs=LOSS, rel=0)
        assert found.tokens == expected.tokens
        for weight, value in found.weights.items():
            np.testing.assert_allclose(value, expected.weights[weight], atol=WEIGHT, rtol=0)


def test_all_processes_see_the_checkpoint_that_they_continue_from_or_all_say_who_does_not(
    both: list[dict[str, Any]],
) -> None:
    (same, absent, another), (same_there, *there) = (found["continues"] for found in both)
    assert same == same_there and same.endswith("/continued/step-00000003")
    assert absent.startswith("process 1 of 2 doesn't see /") and "file system" in absent
    assert another.startswith("process 1 of 2 has another checkpoint in /")
    assert [one.split("/")[0] for one in there] == [one.split("/")[0] for one in (absent, another)]


def test_an_error_of_all_processes_is_raised_in_one_of_them(both: list[dict[str, Any]]) -> None:
    assert sorted(found["error"] for found in both) == ["RunError", "SystemExit"]
