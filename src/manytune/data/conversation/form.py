"""The forms in which files hold conversations, each by its name: from a row to a conversation to an example."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from manytune.data.conversation import alpaca, openai, plain_text, sharegpt, trl
from manytune.data.conversation.checks import check
from manytune.data.conversation.conversation import Conversation
from manytune.data.conversation.values import TEMPLATE_KWARGS, template_kwargs_of
from manytune.data.records import Record
from manytune.data.rendering import field_as_text
from manytune.data.templates import Example, references_in
from manytune.errors import DataError

Learn = Literal["all", "last"]
FormName = Literal["openai", "sharegpt", "alpaca", "trl", "text"]
Format = Literal["auto", "template", "openai", "sharegpt", "alpaca", "trl", "text"]

_READERS: dict[str, tuple[Callable[[Mapping[str, object]], Conversation], tuple[str, ...]]] = {
    "openai": (openai.read, openai.FIELDS),
    "sharegpt": (sharegpt.read, sharegpt.FIELDS),
    "alpaca": (alpaca.read, alpaca.FIELDS),
    "trl": (trl.read, trl.FIELDS),
}
DESCRIPTIONS: Mapping[str, str] = {
    "openai": "OpenAI's messages (role, content)",
    "sharegpt": "ShareGPT's conversations (from, value)",
    "alpaca": "Alpaca's instruction, input and output",
    "trl": "TRL's prompt and completion, each a list of messages",
    "text": "running text, every token of which is learned",
}
"""What people call each form."""


@dataclass(frozen=True)
class ConversationForm:
    """How rows of one of the forms become examples.

    Args:
        name: The form.
        learn: Whether every answer bears the loss, or each conversation's last one.
        group_by: The field whose value keeps rows together in splits, or `None`.
        references: Fields with answers that count as right when answers are scored.
    """

    name: FormName
    learn: Learn = "all"
    group_by: str | None = None
    references: tuple[str, ...] = ()

    def conversation(self, record: Record) -> Conversation:
        """Return a row's conversation, whether or not there is something to learn in it.

        Raises:
            DataError: The row doesn't have this form; with its place.
        """
        if self.name == "text":
            raise DataError("running text is no conversation", where=record.where)
        try:
            return self._read(record)
        except DataError as error:
            raise type(error)(str(error), where=record.where) from error

    def _read(self, record: Record) -> Conversation:
        found = _READERS[self.name][0](record.fields).at(record.source, record.row)
        return replace(found, template_kwargs=template_kwargs_of(record.fields))

    def render(self, record: Record) -> Example:
        """Return the example that a row makes.

        Raises:
            DataError: The row doesn't have this form, or there is nothing to learn in it; with its place.
        """
        try:
            group = None if self.group_by is None else field_as_text("group_by", self.group_by, record.fields)
            references = references_in(record.fields, self.references)
            if self.name == "text":
                return Example((), plain_text.read(record.fields), record.source, record.row, group)
            conversation = self._read(record)
            check(conversation)
        except DataError as error:
            raise type(error)(str(error), where=record.where) from error
        return example_of(conversation, learn=self.learn, group=group, references=references)

    def fields_used(self) -> frozenset[str] | None:
        """Return the fields that the form looks at."""
        fields = plain_text.FIELDS if self.name == "text" else (*_READERS[self.name][1], TEMPLATE_KWARGS)
        return frozenset({*fields, *self.references, *filter(None, [self.group_by])})

    def grouped_by(self, field: str) -> ConversationForm:
        """Return the same with another field whose value keeps rows together."""
        return replace(self, group_by=field)


def example_of(
    conversation: Conversation,
    *,
    learn: Learn = "all",
    group: str | None = None,
    references: tuple[str, ...] = (),
) -> Example:
    """Return a conversation as an example: its last answer is the completion, and earlier ones may bear the loss, too.

    What comes after the last answer that bears the loss is of no use, and isn't in the example.

    Args:
        conversation: One that `check` finds nothing wrong with.
        learn: Which answers bear the loss, of those whose weight isn't 0.
        group: The example's group.
        references: The example's.
    """
    places = [
        place
        for place, message in enumerate(conversation.messages)
        if place > 0 and message.is_answer and message.learned
    ]
    *earlier, end = places
    last = conversation.messages[end]
    return Example(
        segments=conversation.messages[:end],
        completion=last.text,
        source=conversation.source,
        row=conversation.row,
        group=group,
        tools=conversation.tools,
        tool_calls=last.tool_calls,
        reasoning=last.reasoning,
        earlier=tuple(earlier) if learn == "all" else (),
        references=references,
        template_kwargs=conversation.template_kwargs,
    )
