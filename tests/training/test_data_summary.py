"""What a training says of its rows before it begins."""

from __future__ import annotations

import json
from pathlib import Path

from tests.store.tiny import save_tiny_base

from manytune.training.dry_run import estimate
from manytune.training.recipe import Recipe, recipe_from
from manytune.training.run import run


def recipe(tmp_path: Path) -> Recipe:
    row = {"instruction": "abc", "output": "cde", "system": "be kind", "history": [["a", "b"]]}
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(row)}\n" * 4)
    return recipe_from(
        {
            "base": str(save_tiny_base(tmp_path / "base")),
            "data": {"train": str(tmp_path / "rows.jsonl"), "validation": None, "template": "alpaca"},
            "training": {"max_steps": 1},
            "output": str(tmp_path / "run"),
        }
    )


def test_columns_of_the_conversation_that_the_template_does_not_use_are_named(tmp_path: Path) -> None:
    expected = (
        "warning: the template doesn't use columns that look like part of the conversation: system (4 rows), "
        "history (4 rows). To use one, write a prompt (or system) that names it"
    )
    training: list[str] = []
    run(recipe(tmp_path), notify=training.append)
    dry: list[str] = []
    estimate(recipe(tmp_path), notify=dry.append)
    assert expected in training
    assert expected in dry
    assert "4 rows to train on, 0 to validate on" in dry
