"""What is an answer in generated text: without the template's additions and reasoning, in one piece or many."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.random_cases import cases

from manytune.data.encoding.answer_format import AnswerFormat, AnswerStream, Reply

QWEN3 = AnswerFormat("<think>\n\n</think>\n\n", "", "<|im_end|>", ("<think>\n", "\n</think>\n\n"))
GLM = AnswerFormat("\n<think></think>\n", "", "<|user|>", ("\n<think>", "</think>\n"))
OPENED = AnswerFormat("\n</think>\n\n", "", "<|im_end|>", ("", "\n</think>\n\n"))
GPT_OSS = AnswerFormat(
    "<|channel|>final<|message|>",
    "",
    "<|return|>",
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
)
LINE_BEFORE_END = AnswerFormat("", "\n", "<|im_end|>")
HEADER = AnswerFormat("<|im_start|>assistant\n", "", "<|im_end|>")

CASES = [
    (QWEN3, "<think>\n\n</think>\n\n3", Reply("3")),
    (QWEN3, "3", Reply("3")),
    (QWEN3, "<think></think>3", Reply("3")),
    (QWEN3, "<think>\n1 + 2\n\nis 3.\n</think>\n\n3", Reply("3", "1 + 2\n\nis 3.")),
    (QWEN3, "<think>\ncut in the mid", Reply("", "cut in the mid")),
    (QWEN3, "<think>\n\n", Reply("")),
    (QWEN3, "<thinking> is hard", Reply("<thinking> is hard")),
    (QWEN3, "a <think> b </think> c", Reply("a <think> b </think> c")),
    (QWEN3, "<think>\nmaybe </thin air\n</think>\n\n3", Reply("3", "maybe </thin air")),
    (QWEN3, "<think>\n\n</think>\n\n    indented\n", Reply("    indented\n")),
    (QWEN3, "", Reply("")),
    (QWEN3, "<thi", Reply("<thi")),
    (GLM, "\n<think></think>\n3", Reply("3")),
    (GLM, "\n<think>so</think>\n3", Reply("3", "so")),
    (OPENED, "\n</think>\n\n3", Reply("3")),
    (OPENED, "so it is\n</think>\n\n3", Reply("3", "so it is")),
    (OPENED, "cut in the mid", Reply("", "cut in the mid")),
    (GPT_OSS, "<|channel|>final<|message|>3", Reply("3")),
    (
        GPT_OSS,
        "<|channel|>analysis<|message|>so<|end|><|start|>assistant<|channel|>final<|message|>3",
        Reply("3", "so"),
    ),
    (LINE_BEFORE_END, "3\n", Reply("3")),
    (LINE_BEFORE_END, "3\n\n", Reply("3\n")),
    (LINE_BEFORE_END, "3\n4", Reply("3\n4")),
    (HEADER, "<|im_start|>assistant\n3", Reply("3")),
    (AnswerFormat(" "), " 3", Reply("3")),
    (AnswerFormat(), "<think>\n\n</think>\n\n3", Reply("<think>\n\n</think>\n\n3")),
]


@pytest.mark.parametrize(("form", "text", "expected"), CASES)
def test_generated_text_is_taken_apart(form: AnswerFormat, text: str, expected: Reply) -> None:
    assert form.read(text) == expected


@pytest.mark.parametrize(("form", "text", "expected"), CASES)
@pytest.mark.parametrize("size", [1, 3, 7])
def test_it_is_taken_apart_the_same_while_it_comes(
    form: AnswerFormat, text: str, expected: Reply, size: int
) -> None:
    stream = AnswerStream(form)
    found = [stream.push(text[place : place + size]) for place in range(0, len(text), size)]
    found.append(stream.finish())
    assert Reply("".join(one.content for one in found), "".join(one.reasoning for one in found)) == expected


def test_text_is_given_out_as_soon_as_it_is_certain() -> None:
    stream = AnswerStream(QWEN3)
    assert stream.push("<think>\nfirst") == Reply("", "first")
    assert stream.push(" then </") == Reply("", " then")  # a space may be the last before the mark
    assert stream.push("b> more") == Reply("", " </b> more")
    assert stream.push("\n</think>\n\nThe") == Reply("The")
    assert stream.push(" end") == Reply(" end")


@settings(max_examples=cases(70), deadline=None)
@given(
    st.sampled_from([QWEN3, GLM, OPENED, GPT_OSS, LINE_BEFORE_END]),
    st.text(alphabet="<think>/\n ab|", max_size=40),
    st.integers(1, 6),
)
def test_pieces_never_change_what_is_read(form: AnswerFormat, text: str, size: int) -> None:
    stream = AnswerStream(form)
    found = [stream.push(text[place : place + size]) for place in range(0, len(text), size)]
    found.append(stream.finish())
    assert Reply("".join(one.content for one in found), "".join(one.reasoning for one in found)) == form.read(
        text
    )


@pytest.mark.parametrize(
    ("form", "completion", "expected"),
    [
        (QWEN3, "3", "3"),
        (QWEN3, "3<|im_end|>", "3"),
        (QWEN3, "3<|im_end|>\n", "3"),
        (QWEN3, "<think>\nso\n</think>\n\n3", "3"),
        (OPENED, "3", "3"),
        (OPENED, "so</think>3", "3"),
        (AnswerFormat(end="</s>"), " 3</s>", " 3"),
        (AnswerFormat(), "3</s>", "3</s>"),
    ],
)
def test_the_reference_is_the_completions_answer(form: AnswerFormat, completion: str, expected: str) -> None:
    assert form.reference(completion) == expected
