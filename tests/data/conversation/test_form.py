"""Rows that can't be used say why, with their place; what is learned of those that can."""

from collections.abc import Sequence
from typing import Any

import pytest

from manytune.data.conversation.form import ConversationForm
from manytune.data.conversation.openai import read as read_openai
from manytune.data.conversation.openai import row_of
from manytune.data.records import Record
from manytune.errors import DataError

USER = {"role": "user", "content": "2+2?"}
ANSWER = {"role": "assistant", "content": "4"}


def chat(*messages: Any, **more: Any) -> dict[str, Any]:
    return {"messages": list(messages), **more}


def call(arguments: object = "{}", **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}, **more}]}


def refused(form: Any, fields: dict[str, Any]) -> str:
    with pytest.raises(DataError) as caught:
        ConversationForm(form).render(Record(fields, "train.jsonl", 7))
    assert str(caught.value).startswith("train.jsonl:7: ")
    return str(caught.value).removeprefix("train.jsonl:7: ")


DEEP = '{"a": ' * 501 + "1" + "}" * 501


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"messages": None}, "the field 'messages' should be a list of messages; it is null"),
        ({"messages": "hi"}, "the field 'messages' should be a list of messages; it is the text \"hi\""),
        ({"messages": []}, "the field 'messages' has no message in it"),
        (chat("hi"), 'message 1 should be an object; it is the text "hi"'),
        (
            chat({"role": "bot", "content": "x"}),
            "message 1 has the role 'bot'; roles are system, developer, user, assistant, tool, function",
        ),
        (chat({"role": "Assistant", "content": "x"}), "did you mean 'assistant'?"),
        (chat({"content": "x"}), "message 1 has the role null"),
        (
            chat(USER, {"role": "assistant", "content": 4}),
            "message 2 should hold text or a list of text parts; it holds the",
        ),
        (
            chat({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, ANSWER),
            "message 1 has a part of type 'image_url'; manytune reads and learns text only",
        ),
        (
            chat({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, ANSWER),
            "message 1 has a part of type 'input_audio'; manytune reads and learns text only",
        ),
        (
            chat(USER, {**ANSWER, "audio": {"id": "x"}}),
            "message 2 has audio; manytune reads and learns text only",
        ),
        (chat(USER, call("{city: Oslo}")), "message 2's call 1: the arguments of 'f' aren't JSON"),
        (
            chat(USER, call("[1]")),
            "message 2's call 1: the arguments of 'f' should be a JSON object; they are the list [1]",
        ),
        (
            chat(USER, {"role": "assistant", "tool_calls": [{"function": {}}]}),
            "message 2's call 1 has no function's name",
        ),
        (chat({**USER, "tool_calls": call()["tool_calls"]}), "message 1 has tool_calls and is user's"),
        (chat(USER, {**ANSWER, "weight": 2}), "message 2 has a weight of the number 2; a weight is 0 or 1"),
        (
            chat({**USER, "weight": 1}, ANSWER),
            "message 1 has a weight and is user's; only the assistant's messages are",
        ),
        (chat(USER), "the conversation has no answer of the assistant's, so there is nothing to learn"),
        (chat(ANSWER), "the conversation has no answer of the assistant's, so there is nothing to learn"),
        (chat(USER, {**ANSWER, "weight": 0}), "all messages of the assistant's have weight 0"),
        (
            chat(USER, {"role": "assistant", "content": " "}),
            "message 2 is an answer without text or tool calls",
        ),
        (chat(USER, ANSWER, tools=[{"type": "retrieval"}]), "tools, function 1, is of type 'retrieval'"),
        (chat(USER, ANSWER, tools=[{"description": "x"}]), "tools, function 1, has no name"),
        (chat(USER, ANSWER, tools="none"), "tools should be a list of functions"),
        (chat(USER, ANSWER, parallel_tool_calls="no"), "parallel_tool_calls should be true or false"),
        (chat({"role": ["user"], "content": "x"}), "message 1 has the role the list"),
        (chat(USER, {**ANSWER, "weight": {}}), "message 2 has a weight of the object {}; a weight is 0 or 1"),
        (chat(USER, call('{"a": NaN}')), "the arguments of 'f' aren't JSON (NaN isn't JSON"),
        (chat(USER, call('{"a": 1, "a": 2}')), "the arguments of 'f' aren't JSON (the key 'a' appears twice"),
        (chat(USER, call('{"a": "\\ud83d"}')), "aren't JSON (an escape such as \\ud83d is half a character"),
        (chat(USER, call(DEEP)), "the arguments of 'f' aren't JSON (it has too many levels"),
        ({"messages": DEEP}, "list of messages; it is the text"),
        ({"messages": '[{"role": "user", }]'}, "which isn't JSON: "),
        (
            chat(USER, ANSWER, tools="[{]"),
            'tools should be a list of functions; it is the text "[{]", which isn\'t JSON',
        ),
    ],
)
def test_a_malformed_row_of_openais_form_is_refused(fields: dict[str, Any], expected: str) -> None:
    assert expected in refused("openai", fields)


@pytest.mark.parametrize(
    ("form", "fields", "expected"),
    [
        (
            "sharegpt",
            {"conversations": [{"from": "bot", "value": "x"}]},
            "message 1 is from 'bot'; known are system, human",
        ),
        (
            "sharegpt",
            {"conversations": [{"from": "human", "value": "x"}, {"from": "function_call", "value": "f(x)"}]},
            "message 2, a function_call, isn't JSON",
        ),
        (
            "sharegpt",
            {"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y", "weight": 3}]},
            "message 2 has a weight of the number 3; a weight is 0 or 1",
        ),
        (
            "alpaca",
            {"instruction": "x", "output": ""},
            "needs the field 'output', which is missing or empty here",
        ),
        (
            "alpaca",
            {"instruction": "x", "output": "y", "history": ["a"]},
            "history's pair 1 should be two texts",
        ),
        ("alpaca", {"instruction": ["x"], "output": "y"}, "instruction should be text; it is the list"),
        (
            "trl",
            {"prompt": [USER], "chosen": [ANSWER], "rejected": [ANSWER]},
            "the row is a preference (chosen, rejected)",
        ),
        ("trl", {"prompt": [USER], "completion": []}, "the field 'completion' has no message in it"),
        ("text", {"text": " "}, "the field 'text' is empty"),
        ("text", {"text": ["a"]}, "a row of running text needs text in the field 'text'; it is the list"),
    ],
)
def test_a_malformed_row_of_another_form_is_refused(form: str, fields: dict[str, Any], expected: str) -> None:
    assert expected in refused(form, fields)


def example(*messages: Any, learn: Any = "all", **more: Any) -> Any:
    return ConversationForm("openai", learn).render(Record(chat(*messages, **more), "train.jsonl", 7))


def test_every_answer_is_learned_or_the_last_one() -> None:
    turns = [USER, {**ANSWER, "content": "three"}, USER, {**ANSWER, "weight": 0}, USER, ANSWER]
    assert [turn.completion for turn in example(*turns).turns()] == ["three", "4"]
    assert [turn.completion for turn in example(*turns, learn="last").turns()] == ["4"]


def test_what_comes_after_the_last_learned_answer_is_left_out() -> None:
    found = example(USER, ANSWER, USER)
    assert (len(found.segments), found.completion) == (1, "4")
    found = example(USER, ANSWER, USER, {**ANSWER, "weight": 0})
    assert (len(found.segments), found.completion) == (1, "4")


def test_an_answer_before_any_question_is_given_and_not_learned() -> None:
    found = example({"role": "assistant", "content": "Hello."}, USER, ANSWER)
    assert [turn.completion for turn in found.turns()] == ["4"]
    assert found.segments[0].text == "Hello."


def test_openais_older_names_are_understood() -> None:
    found = example(
        {"role": "developer", "content": "Be brief."},
        USER,
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"x": 1}'}},
        {"role": "function", "name": "f", "content": "4"},
        ANSWER,
        functions=[{"name": "f", "parameters": {}}],
    )
    assert [message.role for message in found.segments] == ["system", "user", "assistant", "tool"]
    assert found.segments[2].tool_calls[0].arguments == '{"x": 1}'
    assert found.tools[0]["function"]["name"] == "f"


def test_conversations_and_tools_may_be_json_text() -> None:
    row = {
        "messages": '[{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]',
        "tools": "[]",
    }
    found = ConversationForm("openai").render(Record(row, "train.csv", 2))
    assert (found.segments[0].text, found.completion, found.tools) == ("2+2?", "4", ())


def rows() -> Sequence[dict[str, Any]]:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    tool = {"role": "tool", "tool_call_id": "c1", "content": "4"}
    return (
        chat({"role": "system", "content": "Be brief."}, USER, {**ANSWER, "weight": 0}, USER, ANSWER),
        chat(
            USER, {"content": None, **call('{"x": 1}', id="c1", type="function")}, tool, ANSWER, tools=tools
        ),
        chat({**USER, "name": "Ada"}, {**ANSWER, "reasoning_content": "Two pairs."}),
    )


@pytest.mark.parametrize("row", rows(), ids=["weights", "tools", "reasoning"])
def test_a_row_that_is_written_again_is_the_same_row(row: dict[str, Any]) -> None:
    assert row_of(read_openai(row)) == row


def test_references_and_groups_are_fields_of_the_row() -> None:
    form = ConversationForm("openai", group_by="user", references=("also", "more"))
    row = {**chat(USER, ANSWER), "user": "u1", "also": ["four", "4"], "more": "IV"}
    found = form.render(Record(row, "x", 1))
    assert (found.group, found.references) == ("u1", ("four", "4", "IV"))
