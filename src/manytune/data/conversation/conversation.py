"""A conversation as every format is read into: messages, tools, and where they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from manytune.data.records import Located

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that the assistant calls.

    Args:
        name: The function.
        arguments: What it is called with: a JSON object, as text.
        id: What the tool's answer refers to it by; `None` if the row doesn't say.
    """

    name: str
    arguments: str
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation.

    Args:
        role: Whose it is.
        text: What it says; may be empty for an assistant that only calls tools.
        reasoning: What the model wrote before an answer of its own; for chat templates that take it.
        name: Of the participant, or of the tool that answers.
        tool_calls: The functions that the assistant calls.
        tool_call_id: The call that a tool's message answers.
        learned: Whether an assistant's message bears the loss; false for `weight: 0`.
        written: Ranges of the text that the author of a prompt template wrote: special tokens named there are tokens.
    """

    role: Role
    text: str
    reasoning: str | None = None
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    learned: bool = True
    written: tuple[tuple[int, int], ...] = field(default=(), compare=False)

    @property
    def is_answer(self) -> bool:
        """Whether the assistant wrote it."""
        return self.role == "assistant"


@dataclass(frozen=True)
class Conversation(Located):
    """The messages of one row. A prompt with its completion is the shortest conversation.

    Args:
        messages: In order; at least one.
        tools: The functions that the assistant may call, each as `{"type": "function", "function": {...}}`.
        template_kwargs: Values of the chat template's variables for this conversation, such as `enable_thinking`.
        source: The file or dataset that the row came from.
        row: Its line or record number, from 1.
        notes: What the reader found odd, such as keys that it doesn't use.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    row: int = 0
    notes: tuple[str, ...] = ()

    def at(self, source: str, row: int) -> Conversation:
        """Return the conversation with the place that it was read from."""
        return replace(self, source=source, row=row)
