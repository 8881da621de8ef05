"""What is wrong with a conversation, and what is odd about it."""

from __future__ import annotations

from itertools import pairwise

from manytune.data.conversation.conversation import Conversation, Message
from manytune.errors import DataError


def check(conversation: Conversation) -> None:
    """Refuse what can't be learned from.

    Raises:
        DataError: No answer bears the loss, or one that does is empty.
    """
    answers = [message for message in conversation.messages[1:] if message.is_answer]
    if not answers:
        raise DataError("the conversation has no answer of the assistant's, so there is nothing to learn")
    if not any(message.learned for message in answers):
        raise DataError("all messages of the assistant's have weight 0, so there is nothing to learn")
    for place, message in enumerate(conversation.messages, start=1):
        if message.is_answer and message.learned and not (message.text.strip() or message.tool_calls):
            raise DataError(
                f"message {place} is an answer without text or tool calls; give it weight 0, or take it out"
            )


def oddities(conversation: Conversation) -> tuple[str, ...]:
    """Return what is probably not meant, each with the message's place; the conversation can be used all the same."""
    messages = conversation.messages
    found = list(conversation.notes)
    for place, (before, message) in enumerate(pairwise(messages), start=2):
        if message.role == before.role != "tool":
            found.append(f"messages {place - 1} and {place} are both {_whose(message)}")
        if message.role == "system":
            found.append(f"message {place} is a system message, and it isn't the first")
    spoken = [message for message in messages if message.role != "system"]
    if spoken and spoken[0].is_answer:
        found.append("the first message is the assistant's; it is given, and not learned")
    found += [
        f"message {place} is empty"
        for place, message in enumerate(messages, start=1)
        if not message.text.strip() and not message.tool_calls
    ]
    if messages and not messages[-1].is_answer:
        found.append(f"the last message is {_whose(messages[-1])}; nothing after the last answer is used")
    return (*found, *_unmatched_answers(messages))


def _unmatched_answers(messages: tuple[Message, ...]) -> list[str]:
    """Tools' answers without a call, calls without an answer."""
    found: list[str] = []
    known: set[str] = set()
    open_calls = 0
    for place, message in enumerate(messages, start=1):
        if message.tool_calls:
            open_calls = len(message.tool_calls)
            known |= {call.id for call in message.tool_calls if call.id is not None}
        elif message.role == "tool":
            if message.tool_call_id is not None and known and message.tool_call_id not in known:
                found.append(f"message {place} answers the call {message.tool_call_id!r}, which nobody made")
            elif open_calls == 0:
                found.append(f"message {place} is a tool's answer, and no tool was called before it")
            open_calls = max(0, open_calls - 1)
        elif open_calls:
            found.append(f"message {place} follows a tool call that wasn't answered")
            open_calls = 0
    return found


def _whose(message: Message) -> str:
    return {
        "system": "system messages",
        "user": "the user's",
        "assistant": "the assistant's",
        "tool": "a tool's",
    }[message.role]
