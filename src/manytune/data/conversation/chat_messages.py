"""Messages as chat templates take them: dictionaries with OpenAI's keys, and tools' arguments as objects."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from manytune.data.conversation.conversation import Message, ToolCall


def chat_messages(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """Return messages for a chat template.

    The content is always text, as many templates can't print an absent one. Arguments are objects: templates write them
    as JSON, and text would be written with its quotation marks. A tool's answer has the function's name, of the row or
    of the call that it answers.
    """
    called: dict[str | None, str] = {}
    found = []
    for message in messages:
        called |= {call.id: call.name for call in message.tool_calls if call.id is not None}
        found.append(_chat_message(message, message.name or called.get(message.tool_call_id)))
    return found


def chat_tools(tools: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return tools for a chat template: always with their type first, and without `strict`.

    That says how to answer, and models aren't shown it.
    """
    return [
        {
            "type": "function",
            "function": {key: value for key, value in tool["function"].items() if key != "strict"},
        }
        for tool in tools
    ]


def _chat_message(message: Message, name: str | None) -> dict[str, Any]:
    found: dict[str, Any] = {"role": message.role, "content": message.text}
    if message.reasoning is not None:
        found["reasoning_content"] = message.reasoning
    if name is not None:
        found["name"] = name
    if message.tool_calls:
        found["tool_calls"] = [_call(call) for call in message.tool_calls]
    if message.tool_call_id is not None:
        found["tool_call_id"] = message.tool_call_id
    return found


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": json.loads(call.arguments)}
    named = {} if call.id is None else {"id": call.id}
    return {**named, "type": "function", "function": function}
