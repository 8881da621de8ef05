"""For every family's template: what is served for an answer is the beginning of what training saw for it."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.chat_templates import FAMILIES, tokenizer_of
from tests.random_cases import cases

from manytune.data.conversation.conversation import Message
from manytune.data.conversation.form import ConversationForm
from manytune.data.conversation.openai import row_of
from manytune.data.encoding.encode import Encoder
from manytune.data.encoding.encoded import Encoded
from manytune.data.encoding.encoding_options import EncodingOptions
from manytune.data.records import Record
from manytune.data.templates import Example
from manytune.errors import DataError
from manytune.evaluation.answers import questions_from

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
@settings(max_examples=cases(20), deadline=None)
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


SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TURNED = {"function": {"parameters": SCHEMA, "strict": True, "name": "weather"}, "type": "function"}
PLAIN = {"type": "function", "function": {"parameters": SCHEMA, "name": "weather"}}


@pytest.mark.parametrize("family", ["smollm2", "qwen3", "llama3", "mistral", None])
def test_a_tool_is_shown_without_strict_and_with_its_type_first_wherever_it_comes_from(
    family: str | None,
) -> None:
    rows = [{"messages": CALLING, "tools": [tool]} for tool in (TURNED, PLAIN, TURNED["function"])]
    encoder = Encoder(tokenizer_of(family), max_length=None)
    trained = {encoder.sequences(example_in(row)) for row in rows}
    (first, *_), *others = trained
    assert not others and "strict" not in encoder.text(first.input_ids)
    # What a server makes of the same tool as it was sent.
    assert first.prompt_ids == encoder.prompt_ids([Message("user", "Rain?")], [TURNED])


CALL = {"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
CALLING = [
    {"role": "user", "content": "Rain?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call00001", "content": "no"},
    {"role": "assistant", "content": "No."},
]
NAMED = (
    "{% for m in messages %}{{ m.role }} {{ m.name if m.name is defined else '' }}: {{ m.content }}"
    "{{ m.tool_calls if m.tool_calls is defined else '' }}</s>{% endfor %}"
    "{{ tools if tools else '' }}{% if add_generation_prompt %}assistant : {% endif %}"
)


def example_in(row: dict[str, Any]) -> Example:
    return ConversationForm("openai").render(Record(row, "chat.jsonl", 1))


def test_a_tools_answer_has_the_name_of_the_function_that_was_called() -> None:
    """Clients don't send it, nor do most rows; some templates write it."""
    tokenizer = tokenizer_of(None)
    tokenizer.chat_template = NAMED
    text = Encoder(tokenizer, max_length=None).text(
        Encoder(tokenizer, max_length=None).sequences(example_in({"messages": CALLING}))[-1].input_ids
    )
    assert "tool weather: no" in text


THINKING = ("qwen3", {"enable_thinking": False})


@pytest.mark.parametrize("written", [lambda options: options, json.dumps])
def test_a_rows_own_template_variables_are_used_for_that_row_as_a_server_does_for_a_request(
    written: Any,
) -> None:
    family, options = THINKING
    tokenizer = tokenizer_of(family)
    encoder = Encoder(tokenizer, max_length=None)
    asked, said = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}
    plain = example_in({"messages": [asked, said]})
    own = example_in({"messages": [asked, said], "chat_template_kwargs": written(options)})
    served = EncodingOptions().with_kwargs(options).encoder(tokenizer, chat=None)
    # Between rows without any.
    kept = encoder.encode_all([plain, own, plain]).kept
    assert [one.prompt_ids for one in kept] == [
        encoder.prompt_ids(plain.segments),
        served.prompt_ids(own.segments),
        encoder.prompt_ids(plain.segments),
    ]
    assert encoder.text(kept[1].prompt_ids).endswith("<think>\n\n</think>\n\n")
    assert encoder.text(kept[1].completion_ids) == "4<|im_end|>"
    assert encoder.text(kept[0].completion_ids) == "<think>\n\n</think>\n\n4<|im_end|>"
    asked_of = questions_from([plain, own], encoder)
    assert [question.prompt_ids for question in asked_of] == [kept[0].prompt_ids, kept[1].prompt_ids]
    assert asked_of[1].form == served.answers != asked_of[0].form


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"enable_thinkin": True}, r"chat\.jsonl:1: .*no variable 'enable_thinkin'.*enable_thinking"),
        ({"messages": []}, r"chat\.jsonl:1: .*'messages' isn't an option of the template"),
        (["x"], r"chat\.jsonl:1: chat_template_kwargs should be an object such as .* the list"),
        ("no", r"chat\.jsonl:1: chat_template_kwargs should be an object such as .* the text"),
    ],
)
def test_template_variables_that_cannot_be_used_are_refused_with_the_row(given: Any, message: str) -> None:
    row = {"messages": CALLING[:1] + CALLING[-1:], "chat_template_kwargs": given}
    with pytest.raises(DataError, match=message):
        Encoder(tokenizer_of("qwen3"), max_length=None).sequences(example_in(row))


def test_a_rows_template_variables_need_a_template() -> None:
    row = {"messages": CALLING[:1] + CALLING[-1:], "chat_template_kwargs": THINKING[1]}
    with pytest.raises(DataError, match=r"chat\.jsonl:1: chat_template_kwargs go to a chat template"):
        Encoder(tokenizer_of(None), max_length=None).sequences(example_in(row))
    converted = row_of(ConversationForm("openai").conversation(Record(row, "chat.jsonl", 1)))
    assert converted["chat_template_kwargs"] == THINKING[1]
