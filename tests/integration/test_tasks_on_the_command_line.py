"""The command line on an adapter that was trained on several tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from tests.word_base import save_word_base
from typer.testing import CliRunner

from manytune.cli.main import build_app
from manytune.training.recipe import recipe_from
from manytune.training.run import run

PAIRS = [("hot", "cold"), ("big", "small"), ("old", "new"), ("wet", "dry")]
WORDS = ["<pad>", "<end>", "Opposite", "of", "Repeat", "Say", ":", *(word for pair in PAIRS for word in pair)]
TEMPLATES = """
templates:
  1: !Template {name: repeat, jinja: "Repeat {{ a }} : ||| {{ a }}"}
  2: !Template {name: say, jinja: "Say {{ a }} : ||| {{ a }}"}
"""
DATA: dict[str, Any] = {
    "train": [
        {
            "name": "opposite",
            "file": "rows.jsonl",
            "prompt": "Opposite of {{ a }} :",
            "completion": "{{ b }}",
            "test": "rows.jsonl",
        },
        {"name": "echo", "file": "rows.jsonl", "promptsource": "templates.yaml", "test": "rows.jsonl"},
    ],
    "validation": None,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, rows, a recipe, and a run that learned to say opposites and to repeat."""
    folder = tmp_path_factory.mktemp("tasks")
    save_word_base(folder / "base", WORDS)
    rows = [{"a": a, "b": b} for a, b in PAIRS] + [{"a": b, "b": a} for a, b in PAIRS]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "templates.yaml").write_text(TEMPLATES)
    recipe = {
        "base": "base",
        "data": DATA,
        "method": {"name": "lora", "r": 8, "target_modules": "all-linear"},
        "training": {"max_steps": 120, "learning_rate": 0.01, "warmup": 0.0, "device": "cpu"},
        "output": "run",
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(recipe_from(recipe))
    return folder


@pytest.fixture(autouse=True)
def there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "60")


def manytune(*arguments: str) -> Result:
    return CliRunner().invoke(build_app(), list(arguments))


def generated(*arguments: str) -> str:
    result = manytune("generate", "--adapter", "run", "--max-new-tokens", "4", *arguments)
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


def evaluated(*arguments: str) -> dict[str, Any]:
    result = manytune(
        "evaluate", "run", "--metrics", "exact_match", "--max-new-tokens", "4", "--json", *arguments
    )
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def error(*arguments: str) -> str:
    result = manytune(*arguments)
    assert result.exit_code != 0
    return " ".join(result.output.replace("│", " ").split())


def test_generate_asks_with_the_tasks_own_template() -> None:
    assert generated("--task", "opposite", "--field", "a=hot") == "cold"
    assert generated("--task", "echo/say", "--field", "a=hot") == "hot"


def test_generate_wants_to_know_which_of_several_templates() -> None:
    call = ("generate", "--adapter", "run", "--field", "a=hot")
    listed = "name one with --task: opposite, echo/repeat, echo/say"
    assert f"run has several prompt templates; {listed}." in error(*call)
    assert "name one with --task: echo/repeat, echo/say." in error(*call, "--task", "echo")
    assert "run has no task 'oposite'; did you mean 'opposite'? Its tasks: opposite, echo" in error(
        *call, "--task", "oposite"
    )
    assert "goes through none" in error("generate", "hot", "--adapter", "run", "--task", "opposite")


def test_evaluate_scores_each_task_and_all_together() -> None:
    found = evaluated()
    (_, adapter) = found["results"]
    by_task = {task: scores[0]["value"] for task, scores in adapter["task_scores"].items()}
    assert by_task == {"opposite": 1.0, "echo/repeat": 1.0, "echo/say": 1.0}
    assert adapter["scores"][0]["value"] == 1.0
    assert found["items"] == 24


def test_a_tasks_score_is_the_one_it_has_alone() -> None:
    (base, _) = evaluated("--metrics", "rouge1")["results"]
    for task in ("opposite", "echo/say"):
        found = evaluated("--metrics", "rouge1", "--task", task)
        assert found["items"] == 8
        assert found["results"][0]["scores"] == base["task_scores"][task]
        assert found["results"][0]["task_scores"] == {}


def test_evaluate_prints_a_line_a_task() -> None:
    result = manytune("evaluate", "run", "--metrics", "exact_match", "--max-new-tokens", "4")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 60
    assert any("by task" in line for line in lines)
    for task in ("opposite", "echo/repeat", "echo/say"):
        assert any(line.startswith(task) and "1.000" in line for line in lines), result.stdout


def test_evaluate_takes_other_rows_for_one_task(tmp_path: Path) -> None:
    (tmp_path / "other.jsonl").write_text('{"a": "hot", "b": "cold"}\n{"a": "dry", "b": "wet"}\n')
    other = str(tmp_path / "other.jsonl")
    assert evaluated("--task", "opposite", "--data", other)["items"] == 2
    assert "has several prompt templates" in error("evaluate", "run", "--data", other)


def test_the_data_commands_take_a_task_of_a_recipe() -> None:
    result = manytune("data", "preview", "--recipe", "recipe.yaml", "--task", "echo/say", "--rows", "1")
    assert result.exit_code == 0, result.output
    assert "Say hot :" in result.stdout
    result = manytune("data", "check", "--recipe", "recipe.yaml", "--task", "opposite", "--json")
    assert json.loads(result.stdout)["files"]
    assert "choose one of the recipe's tasks: opposite, echo/repeat" in error(
        "data", "preview", "--recipe", "recipe.yaml"
    )
    assert "tasks are those of a --recipe" in error("data", "preview", "rows.jsonl", "--task", "x")


def test_an_adapter_shows_the_template_of_each_task() -> None:
    shown = manytune("adapters", "show", "run/adapter").stdout
    assert "opposite: prompt" in shown
    assert "Say {{ a }} :" in shown
