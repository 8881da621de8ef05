"""Tools in templates that have none: in text, in the form of Hermes."""

import json

from tests.chat_templates import tokenizer_of

from manytune.data.conversation.conversation import Message, ToolCall
from manytune.data.conversation.tools_as_text import tools_as_text
from manytune.data.encoding.encode import Encoder
from manytune.data.templates import Example

TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}
CALLS = (ToolCall("add", '{"a": 1}', "c1"), ToolCall("add", '{"a": 2}', "c2"))
MESSAGES = (
    Message("system", "Be brief."),
    Message("user", "1 and 2?"),
    Message("assistant", "I add.", tool_calls=CALLS),
    Message("tool", "3", tool_call_id="c1"),
    Message("tool", "4", tool_call_id="c2"),
)


def test_the_tools_are_described_in_the_system_message_and_calls_are_in_their_tags() -> None:
    system, user, called, answered = tools_as_text(MESSAGES, [TOOL])
    assert system.text.startswith("Be brief.\n\n# Tools\n")
    assert json.dumps(TOOL) in system.text
    assert user == MESSAGES[1]
    assert called.text == (
        'I add.\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>\n'
        '<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call>'
    )
    assert answered == Message(
        "user", "<tool_response>\n3\n</tool_response>\n<tool_response>\n4\n</tool_response>"
    )


def test_messages_without_tools_are_left_alone() -> None:
    assert tools_as_text(MESSAGES[:2], ()) == MESSAGES[:2]


def test_a_template_says_whether_it_writes_tools_itself() -> None:
    writes = {
        name: Encoder(tokenizer_of(name), max_length=None).writes_tools for name in ("smollm2", "gemma", None)
    }
    assert not any(writes.values())
    assert all(
        Encoder(tokenizer_of(name), max_length=None).writes_tools for name in ("llama3", "qwen3", "mistral")
    )


def test_the_reference_of_a_call_is_the_call_as_the_template_writes_it() -> None:
    example = Example(MESSAGES[1:2], "", "x", 1, tools=(TOOL,), tool_calls=CALLS[:1])
    hermes = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    llama = '{"name": "add", "parameters": {"a": 1}}'
    for family, expected in (("smollm2", hermes), ("qwen3", hermes), (None, hermes), ("llama3", llama)):
        assert Encoder(tokenizer_of(family), max_length=None).reference(example) == expected
