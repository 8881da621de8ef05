"""What is odd about conversations, each with the message's number."""

from typing import Any

import pytest

from manytune.data.conversation.checks import oddities
from manytune.data.conversation.openai import read

SYSTEM = {"role": "system", "content": "s"}
USER = {"role": "user", "content": "u"}
ANSWER = {"role": "assistant", "content": "a"}


def called(*ids: str) -> dict[str, Any]:
    calls = [{"id": one, "function": {"name": "f", "arguments": "{}"}} for one in ids]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def answered(call: str | None = None) -> dict[str, Any]:
    return {"role": "tool", "content": "r"} | ({} if call is None else {"tool_call_id": call})


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([SYSTEM, USER, ANSWER, USER, ANSWER], []),
        ([USER, called("c1", "c2"), answered("c1"), answered("c2"), ANSWER], []),
        ([USER, called("c1"), answered(), ANSWER], []),
        ([USER, USER, ANSWER], ["messages 1 and 2 are both the user's"]),
        ([USER, ANSWER, ANSWER], ["messages 2 and 3 are both the assistant's"]),
        ([ANSWER, USER, ANSWER], ["the first message is the assistant's; it is given, and not learned"]),
        ([{"role": "user", "content": ""}, ANSWER], ["message 1 is empty"]),
        ([USER, ANSWER, SYSTEM, USER, ANSWER], ["message 3 is a system message, and it isn't the first"]),
        ([USER, ANSWER, USER], ["the last message is the user's; nothing after the last answer is used"]),
        ([USER, answered("c1"), ANSWER], ["message 2 is a tool's answer, and no tool was called before it"]),
        (
            [USER, called("c1"), answered("c9"), ANSWER],
            ["message 3 answers the call 'c9', which nobody made"],
        ),
        ([USER, called("c1"), USER, ANSWER], ["message 3 follows a tool call that wasn't answered"]),
        ([{**USER, "mood": "glad"}, ANSWER], ["message 1 has 'mood', which isn't used"]),
    ],
)
def test_what_is_odd_is_said_with_its_place(messages: list[dict[str, Any]], expected: list[str]) -> None:
    assert list(oddities(read({"messages": messages}))) == expected


def test_parallel_calls_that_the_row_rules_out_are_odd() -> None:
    messages = [USER, called("c1", "c2"), answered("c1"), answered("c2"), ANSWER]
    found = oddities(read({"messages": messages, "parallel_tool_calls": False}))
    assert found == ("message 2 calls several tools, and parallel_tool_calls is false",)
