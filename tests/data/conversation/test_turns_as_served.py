"""For every family's template: what is served for an answer is the beginning of what training saw for it."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.chat_templates import FAMILIES, tokenizer_of

from manytune.data.conversation.conversation import Message
from manytune.data.encode import Encoder
from manytune.data.encoded import Encoded
from manytune.data.encoding_options import EncodingOptions
from manytune.data.templates import Example

WORDS = st.lists(
    st.sampled_from(["the", "2+2?", "\n", "  ", "é🎈", "fox", "It", "\n\n", "a"]), min_size=1, max_size=6
)
TEXTS = WORDS.map("".join).filter(lambda text: text.strip())


@st.composite
def conversations(draw: st.DrawFn, *, system: bool) -> Example:
    turns = draw(st.integers(1, 4))
    messages = [Message("system", draw(TEXTS))] if system and draw(st.booleans()) else []
    for _ in range(turns):
        messages += [Message("user", draw(TEXTS)), Message("assistant", draw(TEXTS))]
    answers = [place for place, message in enumerate(messages[:-1]) if message.is_answer]
    learned = tuple(place for place in answers if draw(st.booleans()) or draw(st.booleans()))
    return Example(tuple(messages[:-1]), messages[-1].text, "chat.jsonl", 1, earlier=learned)


def spans(sequence: Encoded) -> list[tuple[int, int]]:
    """The places of the tokens that bear loss, in the whole sequence."""
    prompt = len(sequence.prompt_ids)
    edges = [0, *(edge for span in sequence.given for edge in span), len(sequence.completion_ids)]
    pairs = zip(edges[::2], edges[1::2], strict=True)
    return [(prompt + start, prompt + end) for start, end in pairs if start < end]


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_each_answer_is_learned_once_after_exactly_what_is_served(family: str, data: st.DataObject) -> None:
    kind = FAMILIES[family]
    example = data.draw(conversations(system=kind.system))
    tokenizer = tokenizer_of(family)
    encoder = Encoder(tokenizer, max_length=None, chat_template_kwargs=kind.options)
    server = EncodingOptions(kind.options).encoder(tokenizer, chat=None)
    sequences = encoder.sequences(example)
    found = [(sequence, span) for sequence in sequences for span in spans(sequence)]
    turns = example.turns()
    assert len(found) == len(turns)
    for (sequence, (start, end)), turn in zip(found, turns, strict=True):
        assert sequence.input_ids[:start] == server.prompt_ids(turn.segments)
        said = encoder.text(sequence.input_ids[start:end])
        text = turn.completion.strip() if kind.trims else turn.completion
        thought = "<think>\n\n</think>\n\n" if family == "qwen3" else ""
        text = text.lstrip("\n") if family.startswith("qwen3") else text
        begun = " " if family == "mistral" else ""
        assert said == begun + thought + text + encoder.answers.end
    assert [sequence.follows for sequence in sequences] == [place > 0 for place in range(len(sequences))]


@pytest.mark.parametrize("family", ["smollm2", "llama3", "gemma", "no-system", "marked"])
def test_a_conversation_is_one_sequence_where_the_template_keeps_earlier_turns(family: str) -> None:
    encoder = Encoder(tokenizer_of(family), max_length=None)
    (sequence,) = encoder.sequences(six_turns())
    assert len(spans(sequence)) == 6


@pytest.mark.parametrize("family", ["qwen3", "qwen3-no-thinking", None])
def test_a_conversation_is_a_sequence_an_answer_where_it_does_not(family: str | None) -> None:
    options: dict[str, Any] = FAMILIES[family].options if family else {}
    encoder = Encoder(tokenizer_of(family), max_length=None, chat_template_kwargs=options)
    sequences = encoder.sequences(six_turns())
    assert [len(spans(sequence)) for sequence in sequences] == [1] * 6
    assert {sequence.group for sequence in sequences} == {"chat.jsonl:1"}


def six_turns() -> Example:
    asked = [Message("user", f"what is {number}+2?") for number in range(6)]
    said = [Message("assistant", f"It is {number + 2}.") for number in range(6)]
    messages = [message for pair in zip(asked, said, strict=True) for message in pair]
    return Example(tuple(messages[:-1]), messages[-1].text, "chat.jsonl", 1, earlier=tuple(range(1, 11, 2)))


def test_earlier_thoughts_are_learned_where_they_are_thought_and_dropped_from_later_prompts() -> None:
    encoder = Encoder(tokenizer_of("qwen3"), max_length=None)
    messages = (
        Message("user", "2+2?"),
        Message("assistant", "4", reasoning="Two pairs."),
        Message("user", "+1?"),
    )
    example = Example(messages, "5", "chat.jsonl", 1, reasoning="One more.", earlier=(1,))
    first, second = encoder.sequences(example)
    assert encoder.text(first.completion_ids) == "<think>\nTwo pairs.\n</think>\n\n4<|im_end|>"
    assert "Two pairs." not in encoder.text(second.input_ids)
    assert encoder.text(second.completion_ids) == "<think>\nOne more.\n</think>\n\n5<|im_end|>"


def test_a_beginning_of_an_answer_is_continued_as_training_saw_it() -> None:
    encoder = Encoder(tokenizer_of("smollm2"), max_length=None)
    asked, whole = Message("user", "count"), "a b c d"
    trained = encoder.encode(Example((asked,), whole, "chat.jsonl", 1))
    begun = encoder.begun_ids([asked, Message("assistant", "a b")])
    assert begun == trained.input_ids[: len(begun)]
    assert encoder.text(begun).endswith("<|im_start|>assistant\na b")


def test_the_tokens_that_bear_loss_are_counted() -> None:
    assert Encoded((1,), (2, 3, 4, 5), "x", 1, given=((1, 3),)).targets == 2
