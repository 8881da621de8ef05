"""Several tasks from files to batches: who is on which side, what an epoch holds, and runs that resume."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.random_cases import some
from tests.training.tiny_run import adapter_digest, recipe_content, sequences, write_rows

from manytune.data.dataset import read_splits
from manytune.data.mixing import mix
from manytune.data.recipe import DataRecipe
from manytune.errors import DataError, TemplateError
from manytune.store.adapters import open_adapter
from manytune.store.run_log import Report, StepReport
from manytune.training.loop.samplers import GroupedSampler, MixtureSampler
from manytune.training.recipe import Recipe, recipe_from
from manytune.training.run import run

TEMPLATES = """
templates:
  1: !Template {name: forward, jinja: "{{ text }} ||| {{ answer }}"}
  2: !Template {name: backward, jinja: "{% if kind == 'word' %}{{ answer }} ||| {{ text }}{% endif %}"}
"""


class StoppedError(Exception):
    pass


def rows(path: Path, *found: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return str(path)


def data(**keys: Any) -> DataRecipe:
    return recipe_from({"data": keys}).data


@pytest.fixture
def promptsource(tmp_path: Path) -> str:
    (tmp_path / "templates.yaml").write_text(TEMPLATES)
    return str(tmp_path / "templates.yaml")


@pytest.fixture
def raw(tmp_path: Path) -> str:
    found = [
        {"text": f"text {n}", "answer": f"answer {n // 2}", "kind": "word" if n % 4 else "number"}
        for n in range(40)
    ]
    return rows(tmp_path / "raw.jsonl", *found)


def two_tasks(tmp_path: Path, **training: Any) -> Recipe:
    content = recipe_content(tmp_path, **training)
    (tmp_path / "templates.yaml").write_text(TEMPLATES.replace("kind == 'word'", "true"))
    content["data"] = {
        "train": [
            {
                "name": "copy",
                "file": str(write_rows(tmp_path / "copy.jsonl", 8, seed=1)),
                "prompt": "{{ text }}",
                "completion": "{{ text }}",
                "weight": 3,
            },
            {
                "name": "both",
                "file": content["data"]["train"],
                "promptsource": str(tmp_path / "templates.yaml"),
                "weight": 1,
            },
        ],
        "validation": 0.25,
        "mixing": {"strategy": "explicit"},
    }
    return recipe_from(content)


def test_an_example_bears_its_task_and_the_tasks_stand_one_after_the_other(
    tmp_path: Path, raw: str, promptsource: str
) -> None:
    one = rows(tmp_path / "one.jsonl", *({"prompt": f"p {n}", "completion": f"c {n}"} for n in range(10)))
    found = read_splits(
        data(
            train=[
                {"name": "one", "file": one},
                {"name": "raw", "file": raw, "promptsource": promptsource, "validation": None, "test": 0.25},
            ],
            validation=0.2,
        )
    )
    assert found.task_sizes == {"one": 8, "raw": len(found.train) - 8}
    assert [example.task for example in found.train[:8]] == ["one"] * 8
    assert {example.task for example in found.train[8:]} == {"raw/forward", "raw/backward"}
    assert {example.task for example in found.validation} == {"one"}
    assert {example.task for example in found.test} == {"raw/forward", "raw/backward"}


def test_all_examples_of_a_row_are_on_one_side_with_the_rows_that_share_a_prompt(
    raw: str, promptsource: str
) -> None:
    found = read_splits(
        data(train=[{"name": "raw", "file": raw, "promptsource": promptsource}], validation=0.25, test=0.25)
    )
    sides = {
        name: {example.row for example in examples}
        for name, examples in (("train", found.train), ("validation", found.validation), ("test", found.test))
    }
    assert sum(len(side) for side in sides.values()) == len(set().union(*sides.values())) == 40
    # Rows 3 and 4 have the same answer, which is a prompt backward.
    assert any({3, 4} <= side for side in sides.values())
    assert found.leaks == ()
    groups = {example.row: example.group for example in (*found.train, *found.validation, *found.test)}
    assert groups[3] == groups[4] is not None
    assert len(set(groups.values())) > 20


def test_a_template_that_does_not_apply_to_a_row_is_listed_and_no_error(raw: str, promptsource: str) -> None:
    found = read_splits(
        data(train=[{"name": "raw", "file": raw, "promptsource": promptsource}], validation=None)
    )
    assert len(found.train) == 40 + 30
    assert [row.row for row in found.left_out] == list(range(1, 41, 4))
    assert found.left_out[0].reason == "the template 'raw/backward' doesn't apply to it"


def test_an_empty_prompt_of_another_template_stays_an_error_that_names_row_and_task(tmp_path: Path) -> None:
    file = rows(tmp_path / "one.jsonl", {"prompt": "", "completion": "c"})
    with pytest.raises(TemplateError, match=r"one\.jsonl:1: task 'one': the prompt is empty"):
        read_splits(data(train=[{"name": "one", "file": file}], validation=None))


def test_a_task_that_is_too_small_for_its_splits_is_named(tmp_path: Path) -> None:
    file = rows(tmp_path / "one.jsonl", {"prompt": "p", "completion": "c"})
    with pytest.raises(DataError, match="task 'one': too few groups"):
        read_splits(data(train=[{"name": "one", "file": file}], validation=0.5))


def test_a_list_of_one_task_divides_the_rows_as_the_task_alone(tmp_path: Path) -> None:
    file = str(write_rows(tmp_path / "rows.jsonl", 24))
    keys: dict[str, Any] = {"prompt": "{{ text }}", "completion": "{{ answer }}"}
    alone = read_splits(data(train=file, validation=0.25, **keys))
    listed = read_splits(data(train=[{"name": "a", "file": file, **keys}], validation=0.25))
    assert [e.row for e in listed.validation] == [e.row for e in alone.validation]


def test_the_samplers_hold_what_the_mixture_says() -> None:
    mixture = mix({"big": 20, "small": 4}, strategy="explicit", weights={"big": 1, "small": 1})
    orders = [
        MixtureSampler(mixture, 0),
        GroupedSampler([(one,) for one in sequences(24)], batch_size=5, seed=0, mixture=mixture),
    ]
    for order in orders:
        order.set_epoch(1)
        found = list(order)
        assert len(found) == len(order) == 24
        assert sorted(found) == sorted(mixture.epoch(0, 1))
        assert Counter(row >= 20 for row in found) == {True: 12, False: 12}


def test_a_run_over_tasks_takes_epochs_of_the_mixture_and_keeps_each_template(tmp_path: Path) -> None:
    wanted = two_tasks(tmp_path)
    lines: list[str] = []
    finished = run(wanted, notify=lines.append)
    # 6 rows to copy; 18 rows, each both ways: 42 rows in an epoch of 14 steps of 3.
    assert finished.training.steps == 2 * 14
    assert json.loads((finished.directory / "scores.json").read_text())["tasks"] == [
        {"name": "copy", "rows": 6, "rows_per_epoch": 32, "rate": 0.75},
        {"name": "both", "rows": 36, "rows_per_epoch": 10, "rate": 0.25},
    ]
    assert "task both: 36 rows, 10 in an epoch (25.0%)" in lines
    manifest = open_adapter(finished.adapter).manifest
    assert manifest is not None
    assert manifest.template is None
    assert manifest.templates is not None
    assert list(manifest.templates) == ["copy", "both/forward", "both/backward"]
    assert manifest.templates["copy"] == {"prompt": "{{ text }}", "completion": "{{ text }}"}
    settled = wanted.training.model_copy(update={"dtype": "float32"})
    assert recipe_from(dict(manifest.recipe or {})) == wanted.model_copy(update={"training": settled})


@pytest.mark.parametrize("group_prefixes", some([False, True], True))
def test_a_run_over_tasks_resumes_to_the_same_bits(tmp_path: Path, group_prefixes: bool) -> None:
    whole = run(two_tasks(tmp_path / "whole", group_prefixes=group_prefixes))
    parts = two_tasks(tmp_path / "parts", group_prefixes=group_prefixes)

    def stop(report: Report) -> None:
        if isinstance(report, StepReport) and report.step == 17:
            raise StoppedError

    with pytest.raises(StoppedError):
        run(parts, report=stop)
    finished = run(parts, resume=True)
    assert finished.resumed_from == 16
    assert adapter_digest(finished.adapter) == adapter_digest(whole.adapter)


def test_a_task_of_rows_that_are_all_too_long_is_named(tmp_path: Path) -> None:
    wanted = two_tasks(tmp_path)
    content = wanted.model_dump(mode="json")
    content["data"] |= {"max_length": 3, "overflow": "drop"}
    with pytest.raises(
        DataError,
        match=r"none of the 6 training rows of the task 'copy' can be used; the first: 21 tokens .* max_length 3",
    ):
        run(recipe_from(content))
