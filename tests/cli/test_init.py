"""`manytune init`: what it writes for each kind of file, and that it overwrites nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cli.newcomers_files import REFUSED, UNDERSTOOD, Expected
from typer.testing import CliRunner

from manytune.cli.main import build_app
from manytune.data.dataset import read_splits
from manytune.training.recipe import load_recipe

USER, ANSWER = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def init(*arguments: str) -> Any:
    return CliRunner().invoke(build_app(), ["init", *arguments])


def write(*rows: dict[str, Any], times: int = 10) -> str:
    Path("train.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows * times))
    return "train.jsonl"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": [USER, ANSWER]}, {"format": "openai", "learn": "all", "overflow": "drop_oldest_turns"}),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            {"format": "sharegpt"},
        ),
        ({"instruction": "a", "output": "b"}, {"format": "alpaca"}),
        ({"prompt": [USER], "completion": [ANSWER]}, {"format": "trl"}),
        ({"text": "a b c"}, {"format": "text", "max_length": 1024}),
        (
            {"prompt": "a", "completion": "b"},
            {"template": "prompt-completion", "overflow": "truncate_prompt"},
        ),
        ({"document": "a", "summary": "b"}, {"template": "summarize"}),
        (
            {"id": "7", "dialogue": "a b c", "summary": "b"},
            {"prompt": "{{ dialogue }}", "completion": "{{ summary }}"},
        ),
        (
            {"The text": "a b c", "gist": "b"},
            {"prompt": '{{ fields["The text"] }}', "completion": "{{ gist }}"},
        ),
    ],
)
def test_the_recipe_fits_the_file(row: dict[str, Any], expected: dict[str, Any]) -> None:
    result = init(write(row))
    assert result.exit_code == 0, result.output
    data = yaml.safe_load(Path("recipe.yaml").read_text())["data"]
    assert {key: data[key] for key in expected} == expected
    assert (data["validation"], data["test"]) == (0.12, 0.12)
    assert "manytune train recipe.yaml" in result.stdout
    assert "manytune evaluate runs/recipe" in result.stdout


def test_it_says_what_is_odd_and_leaves_out_what_cannot_be_used() -> None:
    init(write({"messages": [USER, USER, ANSWER]}, {"messages": [USER]}))
    text = Path("recipe.yaml").read_text()
    assert "# 10 rows can't be used, such as train.jsonl:2: the conversation has no answer" in text
    assert "# 10 conversations are odd: manytune data check says why." in text
    assert yaml.safe_load(text)["data"]["on_error"] == "skip"


CALL = {"function": {"name": "f", "arguments": "{}"}}
CALLING = [USER, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "x"}, ANSWER]


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (CALLING, "--turns each --metrics tool_calls,tool_names"),
        ([USER, {**ANSWER, "content": '{"a": 1}'}], "--metrics json_fields,json_valid"),
        ([USER, {**ANSWER, "content": "[1]"}], None),
    ],
)
def test_it_says_how_calls_and_json_are_scored(messages: list[dict[str, Any]], expected: str | None) -> None:
    init(write({"messages": messages}))
    text = Path("recipe.yaml").read_text()
    assert expected in text if expected else "--metrics" not in text


def test_large_files_set_a_tenth_aside_and_tiny_ones_nothing() -> None:
    init(write({"messages": [USER, ANSWER]}, times=40))
    assert yaml.safe_load(Path("recipe.yaml").read_text())["data"]["test"] == 0.1
    init(write({"messages": [USER, ANSWER]}, times=2), "--output", "tiny.yaml")
    data = yaml.safe_load(Path("tiny.yaml").read_text())["data"]
    assert (data["validation"], "test" in data) == (None, False)


def test_a_recipe_that_exists_stays(folder: None) -> None:
    Path("recipe.yaml").write_text("mine")
    result = init(write({"messages": [USER, ANSWER]}))
    assert result.exit_code == 1
    assert "recipe.yaml exists already" in result.stderr
    assert Path("recipe.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"label": 1, "score": 2}, "no column holds texts (columns: label, score)"),
        (
            {"messages": [USER]},
            "no row can be used; the first: train.jsonl:1: the conversation has no answer",
        ),
        ({"prompt": "a", "completion": ""}, "no row can be used; the first: the completion is empty"),
    ],
)
def test_a_file_without_anything_to_learn_is_refused(row: dict[str, Any], expected: str) -> None:
    result = init(write(row))
    assert result.exit_code == 1
    assert expected in " ".join(result.stderr.split())
    assert not Path("recipe.yaml").exists()


def put(name: str, content: str | bytes) -> str:
    Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
    return name


@pytest.mark.parametrize(("name", "content", "expected"), UNDERSTOOD.values(), ids=UNDERSTOOD)
def test_a_file_as_people_bring_it_gets_a_recipe_that_reads_it(
    name: str, content: str | bytes, expected: Expected
) -> None:
    result = init(put(name, content))
    assert result.exit_code == 0, result.output
    written = yaml.safe_load(Path("recipe.yaml").read_text())
    assert {key: {**written, **written["data"]}[key] for key in expected} == expected
    recipe = load_recipe("recipe.yaml")
    splits = read_splits(recipe.data)
    assert min(len(splits.train), len(splits.validation), len(splits.test)) > 0
    assert len(splits.left_out) == ("on_error" in expected)


@pytest.mark.parametrize(("name", "content", "expected"), REFUSED.values(), ids=REFUSED)
def test_a_file_that_cannot_be_learned_from_is_refused_with_the_reason_and_a_way_on(
    name: str, content: str | bytes, expected: str
) -> None:
    result = init(put(name, content))
    assert result.exit_code == 1
    assert expected in " ".join(result.stderr.split())
    assert not Path("recipe.yaml").exists()


def test_a_table_in_parquet_is_looked_at_like_any_other() -> None:
    import pyarrow
    from pyarrow import parquet

    columns = {"dialogue": ["a b c", "d e f"], "gist": ["x", "y"], "turns": [[1, 2], [3, 4]]}
    parquet.write_table(pyarrow.table(columns), "chats.parquet")
    assert "'{{ dialogue }}'" in init("chats.parquet").stdout
    assert yaml.safe_load(Path("recipe.yaml").read_text())["data"]["completion"] == "{{ gist }}"
