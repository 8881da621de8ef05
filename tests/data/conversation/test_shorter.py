"""Long conversations lose whole turns, as few as needed, and are counted."""

import pytest
from tests.chat_templates import tokenizer_of

from manytune.data.conversation.conversation import Message, ToolCall
from manytune.data.encoding.encode import Encoder
from manytune.data.templates import Example
from manytune.errors import DataError

SYSTEM = Message("system", "Be brief.")


def conversation(answers: int) -> Example:
    messages = [SYSTEM]
    for number in range(answers):
        messages += [Message("user", f"question {number}"), Message("assistant", f"answer {number}")]
    learned = tuple(range(2, 2 * answers, 2))
    return Example(tuple(messages[:-1]), messages[-1].text, "chat.jsonl", 3, earlier=learned)


def lengths() -> list[int]:
    """Tokens of conversations of one to four answers."""
    encoder = Encoder(tokenizer_of("smollm2"), max_length=None)
    return [len(encoder.encode(conversation(answers)).input_ids) for answers in range(1, 5)]


def kept(overflow: str, limit: int) -> tuple[list[str], int, int]:
    encoder = Encoder(tokenizer_of("smollm2"), max_length=limit, overflow=overflow)  # type: ignore[arg-type]
    found = encoder.encode_all([conversation(4)])
    assert not found.dropped
    texts = [encoder.text(one.input_ids) for one in found.kept]
    assert all(len(one.input_ids) <= limit for one in found.kept)
    return texts, found.truncated, found.turns_dropped


def test_the_oldest_turns_go_and_the_system_message_stays() -> None:
    (text,), truncated, dropped = kept("drop_oldest_turns", lengths()[1])
    assert (truncated, dropped) == (1, 2)
    assert text.startswith("<|im_start|>system\nBe brief.")
    assert "question 1" not in text and "question 2" in text and "answer 3" in text


def test_the_newest_turns_go() -> None:
    (text,), truncated, dropped = kept("drop_newest_turns", lengths()[1])
    assert (truncated, dropped) == (1, 2)
    assert "question 0" in text and "answer 1" in text and "question 2" not in text


def test_a_conversation_that_fits_is_left_alone() -> None:
    for overflow in ("drop_oldest_turns", "drop_newest_turns", "truncate_prompt", "drop", "error"):
        _, truncated, dropped = kept(overflow, lengths()[3])
        assert (truncated, dropped) == (0, 0)


@pytest.mark.parametrize(
    ("overflow", "expected"),
    [
        ("drop_oldest_turns", "are more than max_length 9, and so is its shortest part"),
        ("drop_newest_turns", "are more than max_length 9, and so is its shortest part"),
        (
            "truncate_prompt",
            "truncate_prompt cuts no conversation with several answers to learn; drop_oldest_turns",
        ),
        ("drop", "are more than max_length 9"),
    ],
)
def test_a_conversation_that_never_fits_is_left_out_with_its_reason(overflow: str, expected: str) -> None:
    encoder = Encoder(tokenizer_of("smollm2"), max_length=9, overflow=overflow)  # type: ignore[arg-type]
    found = encoder.encode_all([conversation(4)])
    assert found.kept == ()
    assert expected in found.dropped[0].reason


def test_an_error_names_what_drops_turns() -> None:
    encoder = Encoder(tokenizer_of("smollm2"), max_length=9)
    with pytest.raises(DataError, match=r"chat.jsonl:3: .*conversations: 'drop_oldest_turns'"):
        encoder.encode_all([conversation(4)])


def test_a_tools_answer_stays_with_its_call() -> None:
    call = Message("assistant", "", tool_calls=(ToolCall("f", "{}", "abcdefghi"),))
    tool = Message("tool", "r", tool_call_id="abcdefghi")
    last = Message("user", "so?")
    whole = Example(
        (
            Message("user", "first " * 20),
            Message("assistant", "one"),
            Message("user", "call"),
            call,
            tool,
            last,
        ),
        "two",
        "chat.jsonl",
        1,
        earlier=(1, 3),
    )
    encoder = Encoder(tokenizer_of("qwen3"), max_length=None)
    limit = max(len(one.input_ids) for one in encoder.sequences(whole)) - 1
    encoder = Encoder(tokenizer_of("qwen3"), max_length=limit, overflow="drop_oldest_turns")
    text = "".join(encoder.text(one.input_ids) for one in encoder.encode_all([whole]).kept)
    assert "first" not in text
    assert "<tool_call>" in text and "<tool_response>" in text
