"""Conversations as TRL's prompt-completion files have them: `prompt` and `completion`, each a list of messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from manytune.data.conversation.conversation import Conversation, Message
from manytune.data.conversation.openai import messages_in, tools_in
from manytune.data.conversation.values import optional_text
from manytune.errors import DataError

FIELDS = ("prompt", "completion", "tools")


def read(fields: Mapping[str, object]) -> Conversation:
    """Return a row's conversation. Only the completion's messages are learned.

    Raises:
        DataError: The row has no such form.
    """
    if "completion" not in fields and "chosen" in fields:
        raise DataError(
            "the row is a preference (chosen, rejected); manytune trains on completions. Keep chosen alone, as "
            "completion"
        )
    prompt, notes = _part(fields, "prompt")
    completion, more = _part(fields, "completion")
    given = tuple(replace(message, learned=False) for message in prompt)
    return Conversation((*given, *completion), tools_in(fields), notes=(*notes, *more))


def _part(fields: Mapping[str, object], name: str) -> tuple[tuple[Message, ...], list[str]]:
    if isinstance(fields.get(name), str):
        text = optional_text(fields[name], name) or ""
        return (Message("user" if name == "prompt" else "assistant", text),), []
    found, notes = messages_in(fields, name)
    return found, [f"{name}: {note}" for note in notes]
