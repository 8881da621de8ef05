"""A plan's file."""

from pathlib import Path

import pytest
from tests.planner.configs import llama

from manytune.errors import RecipeError
from manytune.planner.recipe import load_plan, plan_from, read_bounded_yaml


def test_a_plan_is_read_with_its_overrides(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text("model: some/config.json\nserving: {adapters: 3}\n")
    found = load_plan(file, ["serving.adapters=10", "method.r=16"])
    assert found.serving is not None and found.serving.adapters == 10
    assert found.method.model_dump()["r"] == 16 and found.training is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [1]", r"model: expected a name or a section; found \[1\]"),
        ("serving: {}", "model: this key is missing"),
        ("model: x\nserve: {}", r"serve: there is no such key; did you mean 'serving'\?"),
        ("model: x\ntraining: {tokens: .inf}", "training.tokens: expected a finite number; found inf"),
        ("model: x\ntraining: {tokens: .nan}", "training.tokens: expected"),
        ("- 1", "expected a mapping with the keys model"),
        ("model: x\nserving: {zipf: 9}", "serving.zipf: expected a number less than or equal to 4"),
        ("model: x\nmodel: y", "the key 'model' is given twice"),
        (
            "model: x\nserving: {adapters: 2000000}",
            "serving.adapters: expected a number less than or equal to 1000000",
        ),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError, match=message):
        load_plan(file)


def test_a_file_is_bounded_before_it_is_parsed(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(" " * (1 << 20) + "{}")
    with pytest.raises(RecipeError, match="at most 1,048,576 bytes"):
        read_bounded_yaml(file)
    with pytest.raises(RecipeError, match="there is no such file"):
        read_bounded_yaml(tmp_path / "nowhere.json")


def test_all_mistakes_are_reported_together() -> None:
    with pytest.raises(RecipeError) as caught:
        plan_from({"model": llama(), "training": {"rows": 0}, "serving": {"load": 2}})
    assert "training.rows" in str(caught.value) and "serving.load" in str(caught.value)
