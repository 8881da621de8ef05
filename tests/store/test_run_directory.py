"""A run directory: what is called how, and what `scores.json` must say."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from tests.store.adapters_made import make_adapter
from tests.store.tiny import save_tiny_base

from manytune import store
from manytune.errors import RunError
from manytune.store.base import load_base
from manytune.store.run_directory import RunDirectory, RunScores, adapter_at, display_name

SCORES = RunScores(
    directory="runs/a",
    adapter="runs/a/adapter",
    base="tiny",
    method="lora",
    validation_loss=None,
    steps=3,
    tokens=40,
    tokens_per_second=20.0,
    seconds=2.5,
    peak_memory=1000,
    trainable_parameters=8,
    all_parameters=80,
    left_out=({"source": "a.jsonl", "row": 3, "reason": "too long"},),
)


def test_scores_are_read_as_they_were_written(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert not run.finished
    run.write_scores(SCORES)
    assert run.finished
    assert run.read_scores().to_dict() == SCORES.to_dict()


def test_keys_of_another_release_are_passed_over_and_missing_ones_that_programs_read_are_named(
    tmp_path: Path,
) -> None:
    run = RunDirectory(tmp_path)
    run.scores_file.write_text(json.dumps({**SCORES.to_dict(), "invented_later": 1}))
    assert run.read_scores().steps == 3
    lacking = {key: value for key, value in SCORES.to_dict().items() if key != "steps"}
    run.scores_file.write_text(json.dumps(lacking))
    with pytest.raises(RunError, match=r"scores\.json: not the scores of a run .*'steps'"):
        run.read_scores()


@pytest.mark.parametrize("content", ["{", "[]", '"text"'])
def test_a_file_that_holds_something_else_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "scores.json").write_text(content)
    with pytest.raises(RunError, match=r"scores\.json: not the scores of a run"):
        RunDirectory(tmp_path).read_scores()


def test_scores_of_a_run_that_is_not_complete_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="expected a complete run"):
        RunDirectory(tmp_path).read_scores()


def test_a_run_names_its_adapter_and_an_adapter_its_run(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    base = load_base(str(save_tiny_base(tmp_path / "base")))
    make_adapter(run.adapter, base)
    assert adapter_at(run.path) == run.adapter == adapter_at(run.adapter)
    assert display_name(run.path) == display_name(run.adapter) == "run"
    assert RunDirectory.of_adapter(run.adapter) is None  # nothing says that a run made it
    run.environment_file.write_text("{}\n")
    run.recipe_file.write_text("base: tiny\n")
    assert RunDirectory.of_adapter(run.adapter) == run


def test_no_other_file_spells_the_names(tmp_path: Path) -> None:
    """An experiment's own recipe is the one file that is called like a run's."""
    run = RunDirectory(tmp_path)
    files = (run.environment_file, run.log_file, run.scores_file, run.evaluation_file, run.checkpoints)
    names = {path.name for path in files}
    source = Path(store.__file__).parents[1]
    spelled = {
        str(path.relative_to(source)): found
        for path in source.rglob("*.py")
        if path.name != "run_directory.py"
        and (
            found := {
                node.value
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Constant) and node.value in names
            }
        )
    }
    assert spelled == {}
