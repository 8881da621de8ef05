"""Conversations as ShareGPT's files have them: `conversations` of `from` and `value`, with `system` and `tools`."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from manytune.data.conversation import openai
from manytune.data.conversation.conversation import Conversation, Message, Role, ToolCall
from manytune.data.conversation.values import (
    described,
    optional_text,
    shown,
    tools_of,
    turns_of,
    unknown,
    unused_keys,
)
from manytune.data.strict_json import parse
from manytune.errors import DataError

FIELDS = ("conversations", "conversation", "system", "tools")

_ROLES: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function_response": "tool",
    "tool": "tool",
}


def read(fields: Mapping[str, object]) -> Conversation:
    """Return a row's conversation.

    Raises:
        DataError: The row has no such form.
    """
    name = "conversation" if "conversation" in fields and "conversations" not in fields else "conversations"
    turns = turns_of(fields, name)
    if "role" in turns[0] and "from" not in turns[0]:  # OpenAI's messages under ShareGPT's name
        return openai.read(fields, messages=name)
    notes: list[str] = []
    messages: list[Message] = []
    for place, turn in enumerate(turns, start=1):
        messages.append(_message(turn, f"message {place}"))
        notes += unused_keys(turn, ("from", "value", "weight", "name"), f"message {place}")
    messages = _with_ids(messages)
    system = optional_text(fields.get("system"), "system")
    if system is not None and messages[0].role == "system":
        notes.append("the row has both the field 'system' and a system message, and the field comes first")
    first = [] if system is None else [Message("system", system)]
    return Conversation((*first, *messages), tools_of(fields.get("tools")), notes=tuple(notes))


def _with_ids(messages: list[Message]) -> list[Message]:
    """Calls and their answers with ids and names, which the form lacks and some chat templates need: in their order."""
    waiting: list[ToolCall] = []
    found: list[Message] = []
    for message in messages:
        if message.tool_calls:
            # Mistral's templates take ids of nine letters and digits only.
            numbers = itertools.count(sum(len(one.tool_calls) for one in found) + 1)
            calls = [
                call if call.id else replace(call, id=f"call{next(numbers):05}")
                for call in message.tool_calls
            ]
            waiting = list(calls)
            message = replace(message, tool_calls=tuple(calls))
        elif message.role == "tool" and waiting:
            call = waiting.pop(0)
            message = replace(message, tool_call_id=call.id, name=message.name or call.name)
        found.append(message)
    return found


def _message(turn: Mapping[str, Any], what: str) -> Message:
    sender = turn.get("from")
    if not isinstance(sender, str) or sender not in _ROLES:
        raise DataError(f"{what} is from {shown(sender)}; known are {unknown(sender, _ROLES)}")
    calls = sender == "function_call"
    said = {"role": _ROLES[sender], "content": None if calls else turn.get("value")}
    message = openai.message_from({**said, **{key: turn.get(key) for key in ("name", "weight")}}, what)
    return replace(message, tool_calls=_calls(turn.get("value"), what)) if calls else message


def _calls(value: object, what: str) -> tuple[ToolCall, ...]:
    found = value
    if isinstance(value, str):
        try:
            found = parse(value)
        except ValueError as error:
            raise DataError(f"{what}, a function_call, isn't JSON ({error}): {described(value)}") from error
    listed = found if isinstance(found, list) else [found]
    return tuple(openai.call_from(call, f"{what}, a function_call") for call in listed)
