"""Trainings of each family of methods: whenever one ends, the next command gives the uninterrupted run's adapter."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from tests.faults.children import Acknowledge, Ended, in_child
from tests.faults.scenario import Scenario
from tests.faults.stores import making
from tests.training.tiny_run import adapter_digest, recipe_content

from manytune.errors import RunError
from manytune.store.adapters import open_adapter
from manytune.store.run_directory import RunDirectory
from manytune.store.run_log import StepReport
from manytune.training.recipe import Recipe, recipe_from
from manytune.training.run import run

#: A method of each family, and a rate at which a few steps change it.
METHODS: dict[str, dict[str, Any]] = {
    "LoRA": {"name": "lora", "r": 2, "lora_dropout": 0.1, "target_modules": "all-linear"},
    "DoRA": {"name": "lora", "r": 2, "use_dora": True, "target_modules": "all-linear"},
    "IA3": {"name": "ia3"},
    "prefix tuning": {"name": "prefix-tuning", "num_virtual_tokens": 2},
    "prompt tuning": {"name": "prompt-tuning", "num_virtual_tokens": 2},
    "bottleneck": {"name": "bottleneck", "bottleneck_size": 4},
    "BitFit": {"name": "selective", "parameters": ["layernorm"]},
    "full": {"name": "full"},
}


def prepare(shared: Path) -> None:
    """Make the base, the rows and the recipe that trainings have in common, once."""
    with making:
        if not (shared / "recipe.json").is_file():
            settings = {
                "max_steps": 4,
                "batch_size": 2,
                "accumulation": 2,
                "eval_every": 2,
                "learning_rate": 0.05,
            }
            content = recipe_content(shared, epochs=4, **settings)
            (shared / "recipe.json").write_text(json.dumps(content))


def recipe_of(shared: Path, method: str, root: Path, *, seed: int = 0) -> Recipe:
    """4 steps, two forward passes each, a checkpoint and a validation every second; LoRA keeps the best step."""
    content = json.loads((shared / "recipe.json").read_text())
    content["training"] |= {"seed": seed, "keep": "best" if method == "LoRA" else "last"}
    return recipe_from({**content, "method": METHODS[method], "output": str(root)})


def train(
    root: Path, acknowledge: Acknowledge, *, shared: Path, method: str, overwrite: bool = False
) -> None:
    """Train."""
    run(recipe_of(shared, method, root), overwrite=overwrite)
    acknowledge("trained")


def check(
    root: Path, acknowledge: Acknowledge, *, shared: Path, method: str, whole: Path, ended: Ended
) -> None:
    """Run the next command, if the run isn't complete: its adapter has the same bits."""
    directory, recipe = RunDirectory(root), recipe_of(shared, method, root)
    was_finished = directory.finished
    if ended.acknowledged:
        assert was_finished
    if was_finished and adapter_digest(directory.adapter) != adapter_digest(whole / "adapter"):
        assert adapter_digest(directory.adapter) == adapter_digest(former_run(shared, method) / "adapter")
        run(recipe, overwrite=True)
        acknowledge("with the former run whole")
    elif was_finished:
        acknowledge("complete already")
    elif directory.begun:
        try:
            run(recipe, resume=True)
            acknowledge("resumed to the same bits")
        except RunError as error:  # what is there is a run that was being replaced
            assert former_run(shared, method).is_dir() and "--overwrite" in str(error), error
            run(recipe, overwrite=True)
            acknowledge("replaced by the next --overwrite")
    else:
        run(recipe)
        acknowledge("started again to the same bits")
    check_same(directory, RunDirectory(whole))


def check_same(directory: RunDirectory, whole: RunDirectory) -> None:
    """See that two runs came to the same result, and that nothing else is left of one."""
    assert adapter_digest(directory.adapter) == adapter_digest(whole.adapter)
    assert open_adapter(directory.adapter).note is None
    ours, theirs = directory.read_scores(), whole.read_scores()
    for key in ("validation_loss", "steps", "tokens", "kept", "train_rows"):
        assert getattr(ours, key) == getattr(theirs, key), key
    course = [
        [
            (one.step, one.loss if isinstance(one, StepReport) else one.validation_loss)
            for one in run.reports()
        ]
        for run in (directory, whole)
    ]
    assert course[0] == course[1], course
    assert not [path for path in directory.path.rglob("*") if ".manytune-" in path.name]


def whole_run(shared: Path) -> Path:
    """A training with LoRA that nothing disturbed; made once."""
    prepare(shared)
    whole = shared / "whole"
    with making:
        if not whole.is_dir():
            made = in_child(partial(train, shared=shared, method="LoRA"), whole)
            assert made.how == "done", made.said
    return whole


def former_run(shared: Path, method: str) -> Path:
    """Where a run of another seed is that is to be replaced."""
    return shared / f"former-{method}"


def copy_former_run(root: Path, *, shared: Path, method: str) -> None:
    """A finished run of another seed."""
    former = former_run(shared, method)
    if not former.is_dir():
        made = in_child(partial(_train_former, shared=shared, method=method), former)
        assert made.how == "done", made.said
    shutil.copytree(former, root)


def _train_former(root: Path, _: Acknowledge, *, shared: Path, method: str) -> None:
    run(recipe_of(shared, method, root, seed=1))


def training(folder: Path, method: str) -> Scenario:
    """A training into a directory that isn't there."""
    prepare(folder)
    return Scenario(
        "training",
        folder / "cases" / method,
        partial(train, shared=folder, method=method),
        partial(check, shared=folder, method=method),
        call=f"training {method}",
    )


def replacing(folder: Path) -> Scenario:
    """A training with --overwrite, where there is a former run."""
    folder = folder / "replaced"  # where there is one to compare with
    prepare(folder)
    return Scenario(
        "training over a former run",
        folder / "cases",
        partial(train, shared=folder, method="LoRA", overwrite=True),
        partial(check, shared=folder, method="LoRA"),
        partial(copy_former_run, shared=folder, method="LoRA"),
    )
