"""Tools for chat templates that know none: described in the system message, called and answered in plain text.

The form is that of Nous Research's Hermes models, which Qwen's templates write, too:

    system      # Tools … <tools> one function a line, as JSON </tools> …
    assistant   <tool_call> {"name": …, "arguments": {…}} </tool_call>
    user        <tool_response> … </tool_response>
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from manytune.data.conversation.chat_messages import chat_tools
from manytune.data.conversation.conversation import Message, ToolCall

_DESCRIPTION = """# Tools

You may call these functions:
<tools>
{tools}
</tools>

To call one, write its name and arguments as JSON between tags:
<tool_call>
{{"name": "...", "arguments": {{...}}}}
</tool_call>"""


def tools_as_text(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    """Return messages in which tools, calls and their answers are text, and no role is `tool`.

    Answers of several tools to one message become one message of the user's.

    Args:
        messages: The conversation, or the beginning of one.
        tools: The functions that the assistant may call.
    """
    found: list[Message] = []
    answering = False
    for message in _described(messages, tools):
        answers = message.role == "tool"
        if answers:
            text = f"<tool_response>\n{message.text}\n</tool_response>"
            if answering:
                found[-1] = replace(found[-1], text=f"{found[-1].text}\n{text}")
            else:
                found.append(Message("user", text))
        elif message.tool_calls:
            parts = [message.text, *map(call_as_text, message.tool_calls)]
            found.append(replace(message, text="\n".join(filter(None, parts)), tool_calls=()))
        else:
            found.append(message)
        answering = answers
    return tuple(found)


def call_as_text(call: ToolCall) -> str:
    """Return a call in its tags."""
    content = {"name": call.name, "arguments": json.loads(call.arguments)}
    return f"<tool_call>\n{json.dumps(content, ensure_ascii=False)}\n</tool_call>"


def _described(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> Sequence[Message]:
    if not tools:
        return messages
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in chat_tools(tools))
    text = _DESCRIPTION.format(tools=listed)
    if messages and messages[0].role == "system":
        return [replace(messages[0], text=f"{messages[0].text}\n\n{text}"), *messages[1:]]
    return [Message("system", text), *messages]
