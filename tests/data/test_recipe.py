"""A recipe with a list of tasks: what is read, and what is answered to mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from manytune.errors import RecipeError
from manytune.training.recipe import Recipe, load_recipe, recipe_from

PROMPTSOURCE = """
templates:
  1: !Template {name: ask, jinja: "Ask. {{ p }} ||| {{ q }}"}
  2: !Template {name: answer, jinja: "{{ p }} {{ q }} ||| {{ answer_choices[a] }}", answer_choices: No ||| Yes}
"""


def task(name: str = "a", **keys: Any) -> dict[str, Any]:
    return {"name": name, "file": f"{name}.jsonl", **keys}


def recipe(*tasks: dict[str, Any], **data: Any) -> Recipe:
    return recipe_from({"data": {"train": list(tasks), **data}})


def refusal(*tasks: dict[str, Any], **data: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        recipe(*tasks, **data)
    return str(caught.value)


@pytest.fixture
def promptsource(tmp_path: Path) -> str:
    (tmp_path / "templates.yaml").write_text(PROMPTSOURCE)
    return str(tmp_path / "templates.yaml")


def test_each_task_has_its_own_rows_template_and_shares() -> None:
    data = recipe(
        task("a", prompt="{{ x }}", completion="{{ y }}", system="S", test="t.jsonl"),
        task("b", file=["b1.jsonl", "b2.csv"], template="summarize", validation=None),
        validation=0.2,
    ).data
    a, b = data.tasks
    assert (a.file, a.validation, a.test) == (("a.jsonl",), 0.2, "t.jsonl")
    assert (b.file, b.validation, b.test) == (("b1.jsonl", "b2.csv"), None, None)
    templates = data.task_templates()
    assert templates["a"].to_dict() == {"prompt": "{{ x }}", "completion": "{{ y }}", "system": "S"}
    assert templates["b"].completion == "{{ summary }}"
    assert data.files == ()


def test_a_task_without_a_template_has_the_default_one() -> None:
    assert recipe(task()).data.task_templates()["a"].prompt == "{{ prompt }}"


def test_a_promptsource_file_gives_a_task_several_templates(promptsource: str) -> None:
    every = recipe(task(promptsource=promptsource)).data
    assert list(every.task_templates()) == ["a/ask", "a/answer"]
    one = recipe(task(promptsource=promptsource, templates=["answer"], system="S")).data
    assert [(name, found.system) for name, found in one.task_templates().items()] == [("a/answer", "S")]


def test_what_is_written_is_read_back(tmp_path: Path, promptsource: str) -> None:
    original = recipe(
        task("a", weight=2),
        task("b", weight=1.5, promptsource=promptsource, test=0.1),
        validation=None,
        mixing={"strategy": "explicit"},
    )
    (tmp_path / "recipe.yaml").write_text(original.to_yaml())
    assert load_recipe(tmp_path / "recipe.yaml") == original


def test_tasks_are_mixed_as_the_recipe_says() -> None:
    weighted = recipe(task("a", weight=1), task("b", weight=3), mixing={"strategy": "explicit"}).data
    assert weighted.mixture({"a": 50, "b": 50}).counts == (25, 75)
    capped = recipe(task("a"), task("b"), mixing={"cap": 10}).data
    assert capped.mixture({"a": 50, "b": 5}).counts == (10, 5)
    tempered = recipe(task("a"), task("b"), mixing={"strategy": "temperature", "temperature": 2}).data
    assert tempered.mixture({"a": 90, "b": 10}).counts == (75, 25)
    assert recipe(task("a"), task("b")).data.mixture({"a": 50, "b": 5}).counts == (50, 5)


@pytest.mark.parametrize(
    ("tasks", "data", "message"),
    [
        (
            [task(promt="x")],
            {},
            "data.train[0].promt: there is no such key; did you mean 'prompt'? Known: name",
        ),
        ([task(), {"name": "b"}], {}, "data.train[1].file: this key is missing. Give its training rows"),
        ([task(), "b.jsonl"], {}, "data.train[1]: expected a section with the keys name, file"),
        ([task(weight=0)], {}, "data.train[0].weight: expected a number greater than 0; found 0"),
        ([task(file=3)], {}, "data.train[0].file: expected a file or a datasets name, or a list"),
        (
            [task(prompt="x")],
            {},
            "data.train[0]: prompt and completion go together; the completion is missing",
        ),
        ([task(template="sumarize")], {}, "data.train[0]: no template is named 'sumarize'; did you mean"),
        ([task(templates=["x"])], {}, "data.train[0]: the task 'a': templates goes with promptsource"),
        ([task(templates=[])], {}, "data.train[0].templates: expected a list of names, or null for all"),
        (
            [task(promptsource="x.yaml", template="alpaca")],
            {},
            "data.train[0]: the task 'a': give either promptsource or template",
        ),
        ([task(promptsource="absent.yaml")], {}, "absent.yaml: the promptsource file can't be read"),
        ([task(validation=0.6, test=0.5)], {}, "data.train[0]: validation and test take 1.1 of the rows"),
        ([task(), task()], {}, "data: two tasks are named 'a'"),
        ([task()], {"prompt": "x"}, "data: with a list of tasks, prompt belongs in each task"),
        ([task()], {"validation": "v.jsonl"}, "data: with a list of tasks, validation is a share or null"),
        ([task()], {"tasks": 1}, "data.tasks: there is no such key"),
        ([task()], {"mixing": {"cpa": 3}}, "data.mixing.cpa: there is no such key; did you mean 'cap'?"),
        (
            [task()],
            {"mixing": {"strategy": "propotional"}},
            "data.mixing.strategy: expected 'proportional', 'temperature' or 'explicit'; found 'propotional' "
            "(text); did you mean 'proportional'?",
        ),
        (
            [task()],
            {"mixing": {"strategy": "temperature"}},
            "data: the strategy temperature needs a temperature",
        ),
        ([task(weight=1)], {}, "data: weights goes with the strategy explicit, not proportional"),
        (
            [task(weight=1), task("b")],
            {"mixing": {"strategy": "explicit"}},
            "data: the strategy explicit needs a weight of every task; 'b' has none",
        ),
    ],
)
def test_a_mistake_is_answered_with_the_tasks_number_and_key(
    tasks: list[Any], data: dict[str, Any], message: str
) -> None:
    assert message in refusal(*tasks, **data)


def test_a_task_may_not_be_called_like_a_template_of_another(promptsource: str) -> None:
    assert "two tasks are named 'a/ask'" in refusal(task(promptsource=promptsource), task("a/ask"))


def test_mixing_needs_tasks() -> None:
    with pytest.raises(RecipeError, match="data: mixing goes with a list of tasks in train"):
        recipe_from({"data": {"train": "a.jsonl", "mixing": {}}})


# How prompts are encoded


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"chat": "off"}, "data.chat: expected auto, true or false; found 'off' (text)"),
        ({"chat": 1}, "data.chat: expected auto, true or false; found 1 (a whole number)"),
        (
            {"chat_template_kwargs": ["a"]},
            "data.chat_template_kwargs: expected a section of names and values",
        ),
        (
            {"chat_template_kwargs": {"a": {1, 2}}},
            "data.chat_template_kwargs: expected what JSON can hold",
        ),
    ],
)
def test_mistakes_in_the_keys_of_the_encoding_are_named(keys: dict[str, Any], expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe_from({"data": {"train": "x.jsonl", **keys}})
    assert expected in str(caught.value)


def test_the_keys_of_the_encoding_are_written_and_read_back(tmp_path: Path) -> None:
    data = {
        "train": "x.jsonl",
        "chat": False,
        "chat_template_kwargs": {"enable_thinking": False},
        "date": "2026-01-31",
    }
    wanted = recipe_from({"data": data})
    (tmp_path / "recipe.yaml").write_text(wanted.to_yaml())
    assert load_recipe(tmp_path / "recipe.yaml", ["output=runs/run"]) == wanted
    assert recipe_from({"data": {"train": "x.jsonl"}}).data.chat == "auto"
