"""Conversations and running text through a recipe's data section: from files to token ids."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.chat_templates import tokenizer_of

from manytune.data.dataset import encode_splits, read_splits
from manytune.data.recipe import DataRecipe
from manytune.errors import DataError, RecipeError
from manytune.training.data_summary import describe_data
from manytune.training.identity import check_recipe
from manytune.training.recipe import recipe_from

USER, ANSWER = {"role": "user", "content": "what?"}, {"role": "assistant", "content": "fox"}


def chat(number: int, answers: int = 2) -> dict[str, Any]:
    first = {"role": "user", "content": f"what is {number}?"}
    return {"messages": [first, ANSWER, *[USER, ANSWER] * (answers - 1)]}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, *rows: dict[str, Any]) -> str:
    Path(name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return name


def data(**keys: Any) -> DataRecipe:
    return recipe_from({"data": {"validation": None, **keys}}).data


def said(recipe: DataRecipe, family: str = "smollm2") -> list[str]:
    splits = read_splits(recipe)
    lines: list[str] = []
    describe_data(lines.append, encode_splits(splits, recipe, tokenizer_of(family)), leaks=len(splits.leaks))
    return lines


def test_the_form_is_recognised_and_every_answer_learned() -> None:
    recipe = data(train=write("chat.jsonl", chat(1), chat(2, answers=3)))
    splits = read_splits(recipe)
    assert splits.format == "openai"
    tokens = encode_splits(splits, recipe, tokenizer_of("smollm2"))
    assert [len(one.given) for one in tokens.train] == [1, 2]
    assert (tokens.train_rows, tokens.turns_dropped) == (2, 0)


def test_a_row_whose_template_rewrites_turns_has_several_sequences_and_counts_once() -> None:
    recipe = data(train=write("chat.jsonl", chat(1), chat(2, answers=3)))
    assert said(recipe, "qwen3")[0] == "2 rows to train on (5 sequences), 0 to validate on"
    assert said(recipe)[0] == "2 rows to train on, 0 to validate on"


def test_the_last_answer_alone_is_learned_if_the_recipe_says_so() -> None:
    recipe = data(train=write("chat.jsonl", chat(1, answers=3)), learn="last")
    (one,) = encode_splits(read_splits(recipe), recipe, tokenizer_of("smollm2")).train
    assert one.given == ()


def test_odd_and_shortened_conversations_are_counted_aloud() -> None:
    odd = {"messages": [USER, USER, ANSWER]}
    recipe = data(
        train=write("chat.jsonl", odd, chat(1, answers=6)), max_length=110, overflow="drop_oldest_turns"
    )
    lines = said(recipe)
    assert "shortened to data.max_length: 1 rows, in which 3 answers aren't learned" in lines
    assert "warning: odd conversations: 1 (chat.jsonl:1); `manytune data check` says why" in lines


def test_a_row_of_another_form_is_an_error_or_left_out_and_counted() -> None:
    file = write("chat.jsonl", chat(1), {"text": "a"})
    with pytest.raises(DataError, match=r"chat\.jsonl:2: the field 'messages' should be a list"):
        read_splits(data(train=file))
    assert [row.row for row in read_splits(data(train=file, on_error="skip")).left_out] == [2]


def test_running_text_is_packed_and_learned_whole() -> None:
    recipe = data(train=write("text.jsonl", {"text": "the fox"}, {"text": "a dog"}), max_length=64)
    tokens = encode_splits(read_splits(recipe), recipe, tokenizer_of("smollm2"))
    assert (len(tokens.train), tokens.train_rows) == (2, 1)
    assert all(len(one.prompt_ids) == 1 and not one.given for one in tokens.train)


def test_columns_that_say_nothing_ask_for_a_template() -> None:
    with pytest.raises(
        DataError, match=r"dialogue\.jsonl: the rows have the columns dialogue, summary, which don't"
    ):
        read_splits(data(train=write("dialogue.jsonl", {"dialogue": "a", "summary": "b"})))


def test_the_default_template_is_used_where_the_format_says_so() -> None:
    splits = read_splits(
        data(train=write("pairs.jsonl", {"prompt": "a", "completion": "b"}), format="template")
    )
    assert (splits.format, splits.train[0].completion) == (None, "b")


def test_several_tasks_may_be_conversations() -> None:
    tasks = [
        {"name": "chat", "file": write("chat.jsonl", chat(1), chat(2)), "format": "openai"},
        {"name": "pairs", "file": write("pairs.jsonl", {"prompt": "a", "completion": "b"})},
    ]
    recipe = data(train=[{**task, "validation": None} for task in tasks])
    tokens = encode_splits(read_splits(recipe), recipe, tokenizer_of("qwen3"))
    assert tokens.mixture is not None and tokens.mixture.sizes == (2, 1)
    assert len(tokens.train) == 5


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"format": "openai", "template": "alpaca"}, "format openai says what a row is; leave out template"),
        (
            {"format": "openai", "system": "x"},
            "system goes with a template; a conversation has its system message",
        ),
        ({"format": "chatml"}, "data.format: expected 'auto', 'template', 'openai'"),
        ({"learn": "first"}, "data.learn: expected 'all' or 'last'"),
        ({"references": 3}, "data.references: expected a field's name, or a list of them; found 3"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(keys: dict[str, Any], expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        data(train="chat.jsonl", **keys)
    assert expected in str(caught.value)


def test_tasks_have_formats_of_their_own() -> None:
    task = {"name": "a", "file": "a.jsonl"}
    with pytest.raises(RecipeError, match="with a list of tasks, format belongs in each task"):
        data(train=[task], format="openai")
    with pytest.raises(RecipeError, match="the task 'a': give either template or format"):
        data(train=[{**task, "format": "openai", "template": "alpaca"}])


def test_a_run_that_found_its_form_is_resumed_with_the_recipe_that_left_it_open(tmp_path: Path) -> None:
    recipe = recipe_from({"data": {"train": "chat.jsonl"}})
    found = recipe.model_copy(update={"data": recipe.data.model_copy(update={"format": "openai"})})
    file = tmp_path / "recipe.yaml"
    file.write_text(found.to_yaml())
    check_recipe(file, recipe)


def test_a_row_that_the_chat_template_refuses_is_an_error_or_left_out_and_counted() -> None:
    file = write("chat.jsonl", chat(1), {"messages": [USER, USER, ANSWER]})
    recipe = data(train=file)
    with pytest.raises(
        DataError, match=r"chat\.jsonl:2: the chat template refuses the messages \(user, user\): Conv"
    ):
        encode_splits(read_splits(recipe), recipe, tokenizer_of("gemma"))
    recipe = data(train=file, on_error="skip")
    tokens = encode_splits(read_splits(recipe), recipe, tokenizer_of("gemma"))
    assert (tokens.train_rows, [row.row for row in tokens.left_out]) == (1, [2])
