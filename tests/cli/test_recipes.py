"""A recipe's mistakes are reported at once: no command imports a model library before it has looked at the recipe."""

from pathlib import Path

import pytest
import yaml
from tests.cli.light import run_each

RECIPE = {
    "base": "base",
    "data": {
        "train": "rows.jsonl",
        "test": 0.2,
        "prompt": "{{ question }}",
        "completion": "{{ answer }}",
    },
    "method": {"name": "lora"},
}
MISTAKES = {
    "a wrong key": ({"training": {"lr": 1e-4}}, "'lr' is training.learning_rate here"),
    "a wrong method": ({"method": {"name": "lroa"}}, "Unknown method 'lroa'. Did you mean 'lora'?"),
    "a wrong option": ({"method": {"name": "lora", "lora_r": 8}}, "'lora_r' is method.r here"),
    "a missing file": ({"data": {**RECIPE["data"], "train": "row.jsonl"}}, "did you mean 'rows.jsonl'?"),
    "a wrong column": (
        {"data": {**RECIPE["data"], "prompt": "{{ questions }}"}},
        "rows.jsonl:1: the prompt template needs the field 'questions'",
    ),
    "a finished run": ({"output": "run"}, "there is a run here already. Continue it with --resume"),
    "a missing base": ({"base": "./bases/mine"}, "there is no such file or directory"),
}
COMMANDS = {
    "train": ["train", "{}"],
    "train --dry-run": ["train", "{}", "--dry-run"],
    "compare": ["compare", "{}"],
    "sweep": ["sweep", "{}"],
    "evaluate": ["evaluate", "--recipe", "{}", "--answers", "answers.jsonl"],
    "data check": ["data", "check", "--recipe", "{}"],
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with rows and a recipe for each mistake."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("{}")
    (tmp_path / "run" / "environment.json").write_text('{"manytune": "1", "packages": {}, "started": ""}')
    (tmp_path / "run" / "scores.json").write_text("{}")
    rows = "".join(f'{{"question": "a{number}", "answer": "b"}}\n' for number in range(20))
    (tmp_path / "rows.jsonl").write_text(rows)
    for name, (changes, _) in MISTAKES.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({**RECIPE, **changes}))
    return tmp_path


def test_mistakes_are_reported_before_a_model_library_is_imported(folder: Path) -> None:
    cases = [(name, COMMANDS["train"]) for name in MISTAKES]
    cases += [
        (name, arguments) for arguments in COMMANDS.values() for name in ("a wrong method", "a missing file")
    ]
    cases += [("a wrong column", COMMANDS[command]) for command in ("compare", "sweep")]
    typed = [[word.replace("{}", f"{name}.yaml") for word in arguments] for name, arguments in cases]
    found = run_each(typed)
    for (name, _), arguments, result in zip(cases, typed, found, strict=False):
        assert MISTAKES[name][1] in result.said, (arguments, result)
        assert (result.code, result.loaded) == (1, []), (arguments, result)
    assert len(found) == len(cases)
