"""The messages of a conversation as clients send them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, Tag, field_validator, model_validator
from pydantic_core import PydanticCustomError

from manytune.data.conversation.conversation import Message as ReadMessage
from manytune.data.conversation.conversation import ToolCall
from manytune.data.strict_json import parse
from manytune.server.bodies.body import Body, Refused, invalid, is_deep
from manytune.server.bodies.body_errors import EXPECTED, alternatives, described
from manytune.server.bodies.field_types import LIST, STRING, Items, string_or_list

_Name = Annotated[str, Field(min_length=1, max_length=200)]


class TextPart(Body):
    """A part of a message."""

    type: Literal["text"]
    text: str

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("type", "text") != "text":
            found = f"one of type {described(values['type'])}"
            raise PydanticCustomError(
                EXPECTED,
                "a part of type 'text', as this server reads nothing else",
                {"found": found},
            )
        return values


_Content = Annotated[
    Annotated[str, Tag(STRING)] | Annotated[Items[TextPart], Tag(LIST)],
    alternatives("a string or a list of parts", string_or_list),
]


class CalledFunction(Body):
    """A function and what it was called with."""

    repeated: ClassVar[frozenset[str]] = frozenset({"parsed_arguments"})
    name: _Name
    arguments: str = Field(description="A JSON object.")

    @field_validator("arguments")
    @classmethod
    def _is_object(cls, text: str) -> str:
        try:
            value = parse(text)
        except ValueError:
            value = None
        if not isinstance(value, dict) or is_deep(value):
            raise PydanticCustomError(EXPECTED, "a string that is a JSON object", {"found": described(text)})
        return text


class Call(Body):
    """A call of the assistant's, as it was returned."""

    id: _Name
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Body):
    """One turn of a conversation."""

    refused: ClassVar[Refused] = {"function_call": (), "refusal": (), "audio": (), "annotations": ([],)}
    repeated: ClassVar[frozenset[str]] = frozenset({"parsed"})
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: _Content
    name: _Name | None = Field(None, description="For chat templates that tell participants apart.")
    tool_calls: Items[Call] = Field(default_factory=list, max_length=128)
    tool_call_id: _Name | None = Field(None, description="The call that a message of a tool's answers.")
    reasoning_content: str | None = Field(
        None, description="What the model wrote before an answer of its own, as it was returned."
    )

    @model_validator(mode="before")
    @classmethod
    def _calls_may_come_alone(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("tool_calls") and values.get("content") is None:
            return {**values, "content": ""}
        return values

    @model_validator(mode="after")
    def _fields_of_its_role(self) -> Self:
        for field, value, role in (
            ("reasoning_content", self.reasoning_content, "assistant"),
            ("tool_calls", self.tool_calls or None, "assistant"),
            ("tool_call_id", self.tool_call_id, "tool"),
        ):
            if value is not None and self.role != role:
                owner = "the assistant" if role == "assistant" else "tools"
                raise invalid(f"{field} belongs to messages of {owner}, not of {self.role}.", "messages")
        if self.role == "tool" and self.tool_call_id is None:
            raise invalid(
                "a message of a tool needs the tool_call_id of the call that it answers.", "messages"
            )
        return self

    @property
    def text(self) -> str:
        """What it says."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)

    def read(self) -> ReadMessage:
        """The message as training has it."""
        return ReadMessage(
            "system" if self.role == "developer" else self.role,
            self.text,
            self.reasoning_content,
            name=self.name,
            tool_calls=tuple(
                ToolCall(call.function.name, call.function.arguments, call.id) for call in self.tool_calls
            ),
            tool_call_id=self.tool_call_id,
        )


def read_messages(messages: Sequence[Message]) -> list[ReadMessage]:
    """A conversation as training has it.

    Raises:
        HttpError: A tool answers a call that isn't there.
    """
    called: set[str] = set()
    found = []
    for place, message in enumerate(messages):
        called |= {call.id for call in message.tool_calls}
        if message.tool_call_id is not None and message.tool_call_id not in called:
            raise invalid(
                f"messages.{place}: no message before it has a call with the id {message.tool_call_id[:60]!r}.",
                "messages",
            )
        found.append(message.read())
    return found
