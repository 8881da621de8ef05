"""What a model is given and what it learns, in chat and plain mode, and what becomes of long examples."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.random_cases import cases

from manytune.data.encoding.encode import Encoder
from manytune.data.templates import Example, Segment
from manytune.errors import DataError, TemplateError

MakeTokenizer = Callable[..., Any]
WITHOUT_GENERATION_PROMPT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
)
TRIMMING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WITHOUT_END_TOKEN = (
    "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant:\n{% endif %}"
)
THINKING_FIRST = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
WITHOUT_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + (TRIMMING)
)
SHOUTING = TRIMMING.replace("m.content | trim", "m.content | replace('quiet', 'LOUD')")
WITHOUT_ANSWERS = "{% for m in messages if m.role != 'assistant' %}{{ m.content }}\n{% endfor %}"
UNEVEN_END = TRIMMING.replace("<|im_end|>\n", "{% if 'odd' in m.content %}{% else %}<|im_end|>\n{% endif %}")


def example(prompt: str, completion: str, *, system: str | None = None, row: int = 5) -> Example:
    segments = (Segment("user", prompt),)
    if system is not None:
        segments = (Segment("system", system), *segments)
    return Example(segments, completion, "train.jsonl", row, group="g")


def texts(encoder: Encoder, item: Example) -> tuple[str, str]:
    encoded = encoder.encode(item)
    tokenizer: Any = encoder.tokenizer
    return tokenizer.decode(encoded.prompt_ids), tokenizer.decode(encoded.completion_ids)


# Chat mode


def test_smollm2_sees_its_own_chat_format_and_learns_the_answer_with_the_end_token(
    make_tokenizer: MakeTokenizer, smollm2_template: str
) -> None:
    tokenizer = make_tokenizer(chat_template=smollm2_template, eos="<|im_end|>", adds_bos_and_eos=True)
    encoder = Encoder(tokenizer, max_length=None)
    assert encoder.mode == "chat"
    assert encoder.end_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert texts(encoder, example("Hello", " Hi! ")) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n",
        " Hi! <|im_end|>",
    )
    assert texts(encoder, example("Hello", "Hi!", system="Be kind."))[0] == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_examples_place_and_group_are_kept(make_tokenizer: MakeTokenizer) -> None:
    encoded = Encoder(make_tokenizer(), max_length=None).encode(example("Hello", "Hi!"))
    assert (encoded.source, encoded.row, encoded.group) == ("train.jsonl", 5, "g")
    assert encoded.input_ids == encoded.prompt_ids + encoded.completion_ids


def test_a_template_that_trims_is_accepted(make_tokenizer: MakeTokenizer) -> None:
    encoder = Encoder(make_tokenizer(chat_template=TRIMMING), max_length=None)
    assert texts(encoder, example("Hello", "  Hi!\n"))[1] == "Hi!<|im_end|>"


def test_a_template_without_generation_prompt_has_the_model_learn_the_answers_header(
    make_tokenizer: MakeTokenizer,
) -> None:
    encoder = Encoder(make_tokenizer(chat_template=WITHOUT_GENERATION_PROMPT), max_length=None)
    assert texts(encoder, example("Hello", "Hi!")) == (
        "<|im_start|>user\nHello<|im_end|>\n",
        "<|im_start|>assistant\nHi!<|im_end|>",
    )


def test_a_template_without_end_token_gets_the_tokenizers(make_tokenizer: MakeTokenizer) -> None:
    encoder = Encoder(make_tokenizer(chat_template=WITHOUT_END_TOKEN), max_length=None)
    assert texts(encoder, example("Hello", "Hi!")) == ("### user:\nHello\n\n### assistant:\n", "Hi!</s>")


@pytest.mark.parametrize(
    "completion", ["im_end", "<|im_end", "Hi!\n", "end|>\n<", "manytune", "a manytune b"]
)
def test_answers_that_look_like_the_templates_ending_are_kept_whole(
    make_tokenizer: MakeTokenizer, smollm2_template: str, completion: str
) -> None:
    encoder = Encoder(make_tokenizer(chat_template=smollm2_template), max_length=None)
    assert texts(encoder, example("Hello", completion))[1] == completion + "<|im_end|>"


def test_a_generation_prompt_that_is_not_the_answers_beginning_is_refused(
    make_tokenizer: MakeTokenizer,
) -> None:
    with pytest.raises(TemplateError) as caught:
        Encoder(make_tokenizer(chat_template=THINKING_FIRST), max_length=None)
    assert "the chat template writes a prompt differently once it is answered" in str(caught.value)
    assert "assistant\\n<think>\\n'" in str(caught.value)
    assert "or turn chat off" in str(caught.value)


def test_a_template_that_leaves_out_the_answer_is_refused(make_tokenizer: MakeTokenizer) -> None:
    with pytest.raises(TemplateError, match="leaves out the assistant's answer; turn chat off"):
        Encoder(make_tokenizer(chat_template=WITHOUT_ANSWERS), max_length=None)


@pytest.mark.parametrize(("template", "completion"), [(SHOUTING, "be quiet now"), (UNEVEN_END, "odd one")])
def test_a_template_that_changes_a_completion_is_an_error_with_the_row(
    make_tokenizer: MakeTokenizer, template: str, completion: str
) -> None:
    encoder = Encoder(make_tokenizer(chat_template=template), max_length=None)
    with pytest.raises(TemplateError) as caught:
        encoder.encode(example("Hello", completion))
    assert str(caught.value).startswith(
        f"train.jsonl:5: the chat template changes the completion '{completion}' to"
    )


def test_messages_that_the_template_refuses_are_an_error_with_the_row(make_tokenizer: MakeTokenizer) -> None:
    encoder = Encoder(make_tokenizer(chat_template=WITHOUT_SYSTEM), max_length=None)
    with pytest.raises(TemplateError) as caught:
        encoder.encode(example("Hello", "Hi!", system="Be kind."))
    assert str(caught.value) == (
        "train.jsonl:5: the chat template refuses the messages (system, user): System role not supported"
    )


# Plain mode


def test_plain_mode_is_the_text_and_the_end_token(make_tokenizer: MakeTokenizer) -> None:
    encoder = Encoder(make_tokenizer(), max_length=None)
    assert encoder.mode == "plain"
    assert encoder.end_id == encoder.tokenizer.eos_token_id
    assert texts(encoder, example("Hello ", "Hi!", system="Be kind.")) == ("Be kind.\n\nHello ", "Hi!</s>")


def test_plain_mode_keeps_the_tokenizers_bos_but_not_its_eos_after_the_prompt(
    make_tokenizer: MakeTokenizer,
) -> None:
    tokenizer = make_tokenizer(adds_bos_and_eos=True)
    assert tokenizer.decode(tokenizer("Hello")["input_ids"]) == "<s>Hello</s>"
    assert texts(Encoder(tokenizer, max_length=None), example("Hello ", "Hi!")) == ("<s>Hello ", "Hi!</s>")


def test_chat_can_be_turned_off(make_tokenizer: MakeTokenizer, smollm2_template: str) -> None:
    encoder = Encoder(make_tokenizer(chat_template=smollm2_template), max_length=None, chat=False)
    assert encoder.mode == "plain"
    assert texts(encoder, example("Hello ", "Hi!")) == ("Hello ", "Hi!</s>")


def test_chat_cannot_be_required_of_a_tokenizer_without_template(make_tokenizer: MakeTokenizer) -> None:
    with pytest.raises(DataError, match="has no chat template"):
        Encoder(make_tokenizer(), max_length=None, chat=True)


def test_a_tokenizer_without_end_token_is_an_error(make_tokenizer: MakeTokenizer) -> None:
    with pytest.raises(DataError, match=r"has no end-of-sequence token.*Set tokenizer\.eos_token"):
        Encoder(make_tokenizer(eos=None), max_length=None)


# What a text writes itself is not written again


@pytest.mark.parametrize(
    ("prompt", "expected"), [("<s>Hello", "<s>Hello"), ("Hello", "<s>Hello"), ("<s>", "<s>")]
)
def test_a_plain_prompt_begins_with_one_bos_whoever_writes_it(
    make_tokenizer: MakeTokenizer, prompt: str, expected: str
) -> None:
    tokenizer = make_tokenizer(adds_bos_and_eos=True)
    encoder = Encoder(tokenizer, max_length=None, special_tokens_in_text=True)
    assert texts(encoder, example(prompt, "Hi!"))[0] == expected
    assert encoder.prompt_ids([Segment("user", prompt)]).count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("completion", ["Hi!", "Hi!</s>", "Hi!</s>\n"])
def test_a_plain_completion_ends_with_one_end_token_whoever_writes_it(
    make_tokenizer: MakeTokenizer, completion: str
) -> None:
    encoder = Encoder(make_tokenizer(), max_length=None)
    assert texts(encoder, example("Hello", completion))[1] == "Hi!</s>"
    assert encoder.reference(example("Hello", completion)) == "Hi!"


def test_a_chat_completion_ends_with_one_end_token_whoever_writes_it(
    make_tokenizer: MakeTokenizer, smollm2_template: str
) -> None:
    encoder = Encoder(make_tokenizer(chat_template=smollm2_template), max_length=None)
    assert texts(encoder, example("Hello", "Hi!<|im_end|>"))[1] == "Hi!<|im_end|>"
    assert encoder.reference(example("Hello", "Hi!<|im_end|>")) == "Hi!"


def test_an_encoder_decoders_texts_begin_and_end_once(make_tokenizer: MakeTokenizer) -> None:
    encoder = Encoder(
        make_tokenizer(adds_bos_and_eos=True),
        max_length=None,
        encoder_decoder=True,
        special_tokens_in_text=True,
    )
    expected = ("<s>Hello</s>", "<s>Hi!</s>")
    assert texts(encoder, example("Hello", "Hi!")) == expected
    assert texts(encoder, example("<s>Hello</s>", "<s>Hi!</s>")) == expected
    assert encoder.answers.read("<s>Hi!").content == "Hi!"


# Length


def test_a_prompt_is_cut_to_the_most_tokens_that_training_gave_one(
    make_tokenizer: MakeTokenizer, smollm2_template: str
) -> None:
    tokenizer = make_tokenizer(chat_template=smollm2_template)
    item = example("QZQZQZQZ", "ZQ", system="QQ")
    full = Encoder(tokenizer, max_length=None).encode(item)
    encoder = Encoder(tokenizer, max_length=None, max_prompt=len(full.prompt_ids) - 3)
    cut = "<|im_start|>system\nQQ<|im_end|>\n<|im_start|>user\nQZQZQ<|im_end|>\n<|im_start|>assistant\n"
    assert texts(encoder, item) == (cut, "ZQ<|im_end|>")
    assert encoder.text(encoder.prompt_ids(item.segments)) == cut
    short = example("QZ", "ZQ", system="QQ")
    assert encoder.encode(short) == Encoder(tokenizer, max_length=None).encode(short)


def test_a_prompt_that_cannot_be_cut_is_an_error_with_the_row(make_tokenizer: MakeTokenizer) -> None:
    encoder = Encoder(make_tokenizer(), max_length=None, max_prompt=3)
    item = Example((Segment("system", "QZQZ"), Segment("user", "QZ")), "Z", "train.jsonl", 5)
    with pytest.raises(
        DataError, match=r"train\.jsonl:5: the prompt has .* tokens, which are cut to 3 as in training"
    ):
        encoder.encode(item)


def test_a_long_example_is_an_error_with_row_and_lengths(make_tokenizer: MakeTokenizer) -> None:
    encoder = Encoder(make_tokenizer(), max_length=5)
    expected = (
        r"train\.jsonl:5: 8 tokens \(prompt 5, completion 3\) are more than max_length 5\. "
        "Raise max_length, or set overflow to 'drop' or 'truncate_prompt'"
    )
    with pytest.raises(DataError, match=expected):
        encoder.encode(example("QZQZQ", "ZQ"))
    with pytest.raises(DataError, match=expected):
        encoder.encode_all([example("Q", "Z"), example("QZQZQ", "ZQ")])


def test_dropped_examples_are_returned_with_the_reason(make_tokenizer: MakeTokenizer) -> None:
    encoder = Encoder(make_tokenizer(), max_length=5, overflow="drop")
    encoded = encoder.encode_all([example("QZ", "ZQ", row=1), example("QZQZQ", "ZQ", row=2)])
    assert [item.row for item in encoded.kept] == [1]
    assert [(item.row, item.reason) for item in encoded.dropped] == [
        (2, "8 tokens (prompt 5, completion 3) are more than max_length 5")
    ]
    assert encoded.truncated == 0


def test_a_truncated_prompt_loses_its_end_and_nothing_else(
    make_tokenizer: MakeTokenizer, smollm2_template: str
) -> None:
    tokenizer = make_tokenizer(chat_template=smollm2_template)
    item = example("QZQZQZQZ", "ZQ", system="QQ")
    full = Encoder(tokenizer, max_length=None).encode(item)
    encoder = Encoder(tokenizer, max_length=len(full.input_ids) - 3, overflow="truncate_prompt")
    assert texts(encoder, item) == (
        "<|im_start|>system\nQQ<|im_end|>\n<|im_start|>user\nQZQZQ<|im_end|>\n<|im_start|>assistant\n",
        "ZQ<|im_end|>",
    )
    assert encoder.encode_all([item, example("Q", "Z", system="Q")]).truncated == 1


def test_a_completion_that_leaves_no_room_is_rejected_when_truncating(make_tokenizer: MakeTokenizer) -> None:
    encoder = Encoder(make_tokenizer(), max_length=4, overflow="truncate_prompt")
    item = example("QZ", "ZQZQ")
    reason = "7 tokens (prompt 2, completion 5) leave no room for any of the user's text within max_length 4"
    assert [dropped.reason for dropped in encoder.encode_all([item]).dropped] == [reason]
    with pytest.raises(DataError) as caught:
        encoder.encode(item)
    assert str(caught.value) == f"train.jsonl:5: {reason}. Raise max_length"


@pytest.mark.parametrize("length", [1, 0, -3])
def test_a_length_without_room_for_prompt_and_completion_is_an_error(
    make_tokenizer: MakeTokenizer, length: int
) -> None:
    with pytest.raises(DataError, match=f"max_length must be at least 2 .*, not {length}"):
        Encoder(make_tokenizer(), max_length=length)


def test_an_unknown_overflow_is_an_error(make_tokenizer: MakeTokenizer) -> None:
    with pytest.raises(DataError) as caught:
        Encoder(make_tokenizer(), max_length=9, overflow="truncate")  # type: ignore[arg-type]
    assert str(caught.value) == (
        "overflow must be one of error, drop, truncate_prompt, drop_oldest_turns, drop_newest_turns, "
        "not 'truncate'; did you mean 'truncate_prompt'?"
    )


def test_a_prompt_without_a_token_is_an_error(make_tokenizer: MakeTokenizer) -> None:
    with pytest.raises(DataError, match=r"train\.jsonl:5: the prompt has no token"):
        Encoder(make_tokenizer(), max_length=None).encode(example("", "Hi!"))


# Properties, over any text. Special tokens in users' text are text that a chat template can't tell from its own.
TEXT = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="<"), min_size=1, max_size=40
).filter(str.strip)
LENGTHS = st.integers(2, 60)
OVERFLOWS = st.sampled_from(["drop", "truncate_prompt"])


@pytest.mark.parametrize("template", [None, TRIMMING, WITHOUT_GENERATION_PROMPT])
def test_a_completion_survives_whole_or_is_reported(
    make_tokenizer: MakeTokenizer, template: str | None
) -> None:
    tokenizer = make_tokenizer(chat_template=template)
    unlimited = Encoder(tokenizer, max_length=None)

    @settings(max_examples=cases(20), deadline=None)
    @given(TEXT, TEXT, LENGTHS, OVERFLOWS)
    def check(prompt: str, completion: str, length: int, overflow: Any) -> None:
        item = example(prompt, completion)
        found = Encoder(tokenizer, max_length=length, overflow=overflow).encode_all([item])
        assert len(found.kept) + len(found.dropped) == 1
        for encoded in found.kept:
            assert len(encoded.input_ids) <= length
            assert encoded.completion_ids == unlimited.encode(item).completion_ids
            assert completion.strip() in tokenizer.decode(encoded.completion_ids)
            assert encoded.completion_ids[-1] == unlimited.end_id

    check()


@pytest.mark.parametrize("template", [None, TRIMMING, WITHOUT_GENERATION_PROMPT])
def test_the_served_prompt_is_exactly_the_beginning_of_what_was_trained(
    make_tokenizer: MakeTokenizer, template: str | None
) -> None:
    encoder = Encoder(make_tokenizer(chat_template=template, adds_bos_and_eos=True), max_length=None)

    @settings(max_examples=cases(20), deadline=None)
    @given(TEXT, TEXT)
    def check(prompt: str, completion: str) -> None:
        item = example(prompt, completion)
        served = encoder.prompt_ids(item.segments)
        trained = encoder.encode(item)
        assert trained.input_ids[: len(served)] == served
        assert trained.input_ids[len(served) :] == trained.completion_ids

    check()
