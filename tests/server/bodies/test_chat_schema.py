"""Messages, tools and formats: what fits is read as training has it, what doesn't is refused in one sentence."""

import pytest
from pydantic import ValidationError

from manytune.data.conversation.conversation import Message, ToolCall
from manytune.server.bodies.body_errors import invalid_body
from manytune.server.bodies.chat_schema import ChatRequest
from manytune.server.bodies.message_schema import read_messages
from manytune.server.http_errors import HttpError

USER = {"role": "user", "content": "Hi"}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
ANSWER = {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "2"}]}
TOOL = {
    "type": "function",
    "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}},
}
STRICT = {**TOOL, "function": {**TOOL["function"], "strict": True}}


def nested(depth: int) -> dict:
    found: dict = {}
    for _ in range(depth):
        found = {"a": found}
    return found


def read(**body) -> ChatRequest:
    return ChatRequest.model_validate({"model": "m", "messages": [USER], **body})


def refusal(**body) -> str:
    try:
        read_messages(read(**body).messages)
    except HttpError as error:
        assert error.status == 400
        return error.message
    except ValidationError as error:
        first = error.errors()[0]
        return invalid_body({**first, "loc": ("body", *first["loc"])}).message
    raise AssertionError("it was accepted")


def test_messages_are_read_as_training_has_them() -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {**USER, "name": "Ada"},
        CALLED,
        ANSWER,
        {"role": "assistant", "content": "2", "reasoning_content": "Sum."},
    ]
    assert read_messages(read(messages=messages).messages) == [
        Message("system", "Be brief."),
        Message("user", "Hi", name="Ada"),
        Message("assistant", "", tool_calls=(ToolCall("add", '{"a": 1}', "c1"),)),
        Message("tool", "2", tool_call_id="c1"),
        Message("assistant", "2", "Sum."),
    ]


def test_tools_go_to_the_template_as_they_were_sent() -> None:
    turned = {
        "function": {"parameters": {"type": "object"}, "strict": True, "name": "add"},
        "type": "function",
    }
    (found,) = read(tools=[turned]).described_tools
    assert found == turned and list(found["function"]) == ["parameters", "strict", "name"]
    assert read(tools=[turned]).form().tools[0].strict


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages.0.content.0: expected a part of type 'text', as this server reads nothing else, found "
            "one of type 'image_url'.",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
            "messages.0.content.0: expected a part of type 'text', as this server reads nothing else, found "
            "one of type 'input_audio'.",
        ),
        ({"messages": [USER, {"role": "assistant"}]}, "messages.1.content is missing."),
        (
            {"messages": [{**USER, "tool_calls": [CALL]}]},
            "tool_calls belongs to messages of the assistant, not of user.",
        ),
        (
            {"messages": [{**USER, "tool_call_id": "c1"}]},
            "tool_call_id belongs to messages of tools, not of user.",
        ),
        (
            {"messages": [USER, {"role": "tool", "content": "2"}]},
            "a message of a tool needs the tool_call_id of the call that it answers.",
        ),
        ({"messages": [USER, ANSWER]}, "messages.1: no message before it has a call with the id 'c1'."),
        (
            {
                "messages": [
                    USER,
                    {**CALLED, "tool_calls": [{**CALL, "function": {"name": "a", "arguments": "[1]"}}]},
                ]
            },
            "messages.1.tool_calls.0.function.arguments: expected a string that is a JSON object, found '[1]'.",
        ),
        (
            {"tools": [{"type": "custom", "custom": {}}]},
            "tools.0: expected a tool of type 'function', as there are no",
        ),
        (
            {"tools": [{**TOOL, "function": {"name": "add", "parameters": nested(500)}}]},
            "tools.0.function.parameters: expected a schema of 100 levels at most, found a deeper one.",
        ),
        ({"tools": [TOOL, TOOL]}, "tools has two functions called 'add'."),
        ({"tool_choice": "required"}, "tool_choice needs tools."),
        (
            {"tools": [TOOL], "tool_choice": "any"},
            "tool_choice: expected 'none', 'auto' or 'required', found 'any'.",
        ),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "sub"}}},
            "tool_choice names 'sub', which isn't among the tools.",
        ),
        (
            {"tools": [TOOL], "tool_choice": 3},
            "tool_choice: expected 'none', 'auto', 'required' or an object that names",
        ),
        ({"tools": [TOOL], "messages": [], "fields": {"a": "b"}}, "tools go with messages;"),
        (
            {"tools": [TOOL], "skip_special_tokens": True},
            "skip_special_tokens would leave out the marks of tool calls;",
        ),
        (
            {"response_format": {"type": "json_schema"}},
            "response_format: expected json_schema with it, found type 'json_schema'.",
        ),
        (
            {"response_format": {"type": "xml"}},
            "response_format.type: expected 'text', 'json_object' or 'json_schema'",
        ),
        (
            {"response_format": {"type": "json_object"}, "regex": "a"},
            "regex and response_format exclude each other; give one.",
        ),
        ({"grammar": "start: /a/", "regex": "a"}, "regex and grammar exclude each other; give one."),
        (
            {"continue_final_message": True},
            "continue_final_message needs a last message of the assistant's, with text",
        ),
        (
            {"continue_final_message": True, "messages": [USER, CALLED, ANSWER]},
            "continue_final_message needs a last message of the assistant's, with text and without tool calls.",
        ),
        ({"stop_token_ids": [-1]}, "stop_token_ids.0: expected 0 or more, found -1."),
        ({"functions": [{}]}, "functions isn't implemented by this server; leave it out."),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(body: dict, message: str) -> None:
    assert refusal(**body).startswith(message)


@pytest.mark.parametrize(
    ("more", "choice", "callable", "several"),
    [
        ({}, "auto", None, True),
        ({"tool_choice": "none"}, "none", None, True),
        ({"tool_choice": "required", "parallel_tool_calls": False}, "required", None, False),
        ({"tool_choice": {"type": "function", "function": {"name": "add"}}}, "required", "add", False),
    ],
)
def test_the_choice_among_tools_is_read(more: dict, choice: str, callable: str | None, several: bool) -> None:
    form = read(tools=[TOOL], **more).form()
    assert (form.choice, form.callable, form.several) == (choice, callable, several)


def test_a_tool_without_parameters_takes_none() -> None:
    form = read(tools=[{"type": "function", "function": {"name": "clock"}}]).form()
    assert form.tools[0].parameters == {"type": "object", "properties": {}, "additionalProperties": False}


def test_formats_that_restrict_nothing_have_no_grammar() -> None:
    for body in (
        {},
        {"response_format": {"type": "text"}},
        {"tools": [], "tool_choice": "none"},
        {"tools": [TOOL]},
    ):
        assert read(**body).form().is_free
    assert (
        not read(tools=[STRICT]).form().is_free
        and not read(tools=[TOOL], parallel_tool_calls=False).form().is_free
    )
