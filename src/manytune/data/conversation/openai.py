"""Conversations as OpenAI's fine-tuning files have them: `messages` of `role` and `content`, and `tools`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from manytune.data.conversation.conversation import Conversation, Message, Role, ToolCall
from manytune.data.conversation.values import (
    TEMPLATE_KWARGS,
    described,
    object_text,
    optional_text,
    shown,
    text_of,
    tools_of,
    turns_of,
    unknown,
    unused_keys,
)
from manytune.data.printable import is_absent
from manytune.errors import DataError

FIELDS = ("messages", "tools", "functions", "parallel_tool_calls")

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
_KEYS = (
    "role",
    "content",
    "name",
    "tool_calls",
    "tool_call_id",
    "weight",
    "function_call",
    "refusal",
    "audio",
)
_REASONING = ("reasoning_content", "reasoning", "thinking")


def read(fields: Mapping[str, object], *, messages: str = "messages") -> Conversation:
    """Return a row's conversation.

    Args:
        fields: The row's values.
        messages: The field with the messages.

    Raises:
        DataError: The row has no such form.
    """
    found, notes = messages_in(fields, messages)
    parallel = fields.get("parallel_tool_calls")
    if not is_absent(parallel) and not isinstance(parallel, bool):
        raise DataError(f"parallel_tool_calls should be true or false; it is {described(parallel)}")
    several = [place for place, message in enumerate(found, start=1) if len(message.tool_calls) > 1]
    if parallel is False and several:
        notes.append(f"message {several[0]} calls several tools, and parallel_tool_calls is false")
    return Conversation(found, tools_in(fields), notes=tuple(notes))


def messages_in(fields: Mapping[str, object], name: str) -> tuple[tuple[Message, ...], list[str]]:
    """Return the messages in a field, and what is odd about them.

    Raises:
        DataError: The field doesn't hold messages.
    """
    notes: list[str] = []
    found = []
    for place, turn in enumerate(turns_of(fields, name), start=1):
        found.append(message_from(turn, f"message {place}"))
        notes += unused_keys(turn, (*_KEYS, *_REASONING), f"message {place}")
    return tuple(found), notes


def tools_in(fields: Mapping[str, object]) -> tuple[Mapping[str, Any], ...]:
    """Return the functions in a row's `tools`, or in `functions`, as OpenAI called them first.

    Raises:
        DataError: They aren't functions.
    """
    return tools_of(fields.get("tools")) or tools_of(fields.get("functions"), "functions")


def message_from(turn: Mapping[str, Any], what: str) -> Message:
    """Return a message.

    Args:
        turn: As OpenAI writes it.
        what: What it is, for messages: `"message 3"`.

    Raises:
        DataError: It can't be used; says which part.
    """
    name = turn.get("role")
    if not isinstance(name, str) or name not in _ROLES:
        raise DataError(f"{what} has the role {shown(name)}; roles are {unknown(name, _ROLES)}")
    if not is_absent(turn.get("audio")):
        raise DataError(f"{what} has audio; manytune reads and learns text only")
    role = _ROLES[name]
    refusal = optional_text(turn.get("refusal"), f"{what}'s refusal")
    text = text_of(turn.get("content"), what) or refusal or ""
    calls = _calls(turn, what)
    if calls and role != "assistant":
        raise DataError(f"{what} has tool_calls and is {role}'s; only the assistant calls tools")
    reasoning = next((turn[key] for key in _REASONING if turn.get(key)), None)
    return Message(
        role,
        text,
        reasoning=optional_text(reasoning, f"{what}'s reasoning") if role == "assistant" else None,
        name=optional_text(turn.get("name"), f"{what}'s name"),
        tool_calls=calls,
        tool_call_id=optional_text(turn.get("tool_call_id"), f"{what}'s tool_call_id"),
        learned=_weight(turn.get("weight"), role, what),
    )


def row_of(conversation: Conversation) -> dict[str, Any]:
    """Return the row that `read` reads as the conversation."""
    row: dict[str, Any] = {"messages": [_turn_of(message) for message in conversation.messages]}
    more = {
        "tools": [dict(tool) for tool in conversation.tools],
        TEMPLATE_KWARGS: dict(conversation.template_kwargs),
    }
    return row | {name: value for name, value in more.items() if value}


def _turn_of(message: Message) -> dict[str, Any]:
    turn: dict[str, Any] = {
        "role": message.role,
        "content": message.text or (None if message.tool_calls else ""),
    }
    if message.tool_calls:
        turn["tool_calls"] = [
            ({} if call.id is None else {"id": call.id})
            | {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    more = {
        "reasoning_content": message.reasoning,
        "name": message.name,
        "tool_call_id": message.tool_call_id,
    }
    turn |= {key: value for key, value in more.items() if value is not None}
    return turn if message.learned else {**turn, "weight": 0}


def _calls(turn: Mapping[str, Any], what: str) -> tuple[ToolCall, ...]:
    listed = turn.get("tool_calls")
    if is_absent(listed) or listed == []:
        legacy = turn.get("function_call")
        return () if is_absent(legacy) else (call_from(legacy, f"{what}'s function_call"),)
    if not isinstance(listed, list):
        raise DataError(f"{what}'s tool_calls should be a list; it is {described(listed)}")
    return tuple(call_from(call, f"{what}'s call {place}") for place, call in enumerate(listed, start=1))


def call_from(value: object, what: str) -> ToolCall:
    """Return a call, from `{"function": {"name", "arguments"}}` or from the function alone.

    Raises:
        DataError: It has no name, or its arguments aren't a JSON object.
    """
    function = value.get("function", value) if isinstance(value, Mapping) else value
    if not isinstance(value, Mapping) or not isinstance(function, Mapping):
        raise DataError(f"{what} should be an object with a function; it is {described(value)}")
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise DataError(f"{what} has no function's name: {described(value)}")
    arguments = function.get("arguments")
    arguments = function.get("parameters", {}) if is_absent(arguments) else arguments
    text = object_text({} if arguments == "" else arguments, f"{what}: the arguments of {name!r}")
    return ToolCall(name, text, optional_text(value.get("id"), f"{what}'s id"))


def _weight(value: object, role: Role, what: str) -> bool:
    if is_absent(value):
        return True
    if isinstance(value, bool) or value not in (0, 1):
        raise DataError(f"{what} has a weight of {shown(value)}; a weight is 0 or 1")
    if role != "assistant" and value == 1:
        raise DataError(f"{what} has a weight and is {role}'s; only the assistant's messages are learned")
    return value == 1
