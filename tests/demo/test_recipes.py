"""The demo's recipes are recipes like a user's."""

from pathlib import Path
from typing import Literal

import pytest

from manytune.demo.recipes import make_recipe
from manytune.training.recipe import load_recipe

METHODS = ("lora", "full")


@pytest.mark.parametrize("method", METHODS)
def test_manytune_train_reads_them_back_the_same(method: Literal["lora", "full"], tmp_path: Path) -> None:
    recipe = make_recipe(method, tmp_path, steps=12)
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


@pytest.mark.parametrize(("steps", "every"), [(1, 1), (5, 3), (12, 6)])
def test_there_is_a_validation_half_way(steps: int, every: int, tmp_path: Path) -> None:
    assert make_recipe("lora", tmp_path, steps=steps).training.eval_every == every


def test_both_see_the_same_rows_in_the_same_order(tmp_path: Path) -> None:
    lora, full = (make_recipe(method, tmp_path, steps=9) for method in METHODS)  # type: ignore[arg-type]
    assert lora.data == full.data
    same = {"batch_size", "batching", "group_prefixes", "seed", "max_steps", "lr_scheduler"}
    assert lora.training.model_dump(include=same) == full.training.model_dump(include=same)
    assert lora.output != full.output
