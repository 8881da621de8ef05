"""Templates that say what they generate are taken at their word, if it is on the answers."""

import pytest
from tests.chat_templates import FAMILIES, MARKED, Family, tokenizer_of

from manytune.data.conversation.conversation import Message
from manytune.data.conversation.generation_marks import marking, unmarked
from manytune.data.encoding.encode import Encoder
from manytune.data.templates import Example
from manytune.errors import TemplateError

QUESTION, ANSWER = Message("user", "2+2?"), "It is 4."
HEADER_TOO = MARKED.replace(
    "{{ '<|im_start|>assistant\n' }}{% generation %}", "{% generation %}{{ '<|im_start|>assistant\n' }}"
)
ON_QUESTIONS = (
    MARKED.replace("{% generation %}", "")
    .replace("{% endgeneration %}", "")
    .replace(
        "{% else %}{{ '<|im_start|>' + message.role",
        "{% else %}{% generation %}{{ '<|im_start|>' + message.role",
        1,
    )
    .replace(
        "message.content + '<|im_end|>\n' }}{% endif %}",
        "message.content + '<|im_end|>\n' }}{% endgeneration %}{% endif %}",
    )
)
WITHOUT_TEXT = MARKED.replace(
    "{% generation %}{{ message.content + '<|im_end|>\n' }}{% endgeneration %}",
    "{{ message.content }}{% generation %}{{ '<|im_end|>\n' }}{% endgeneration %}",
)
BLOCK_GIVEN = MARKED.replace("{% generation %}", "{{ '<think></think>' }}{% generation %}").replace(
    "{{ '<|im_start|>assistant\n' }}{% endif %}", "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NO_END = MARKED.replace(
    "{% generation %}{{ message.content + '<|im_end|>\n' }}{% endgeneration %}",
    "{% generation %}{{ message.content }}{% endgeneration %}{{ '<|im_end|>\n' }}",
)


@pytest.fixture
def encode(monkeypatch: pytest.MonkeyPatch):
    def make(template: str) -> tuple[Encoder, Example]:
        monkeypatch.setitem(FAMILIES, "tried", Family(template))
        return Encoder(tokenizer_of("tried"), max_length=None), Example((QUESTION,), ANSWER, "chat.jsonl", 1)

    return make


def learned(encoder: Encoder, example: Example) -> str:
    encoded = encoder.encode(example)
    given = {place for start, end in encoded.given for place in range(start, end)}
    return encoder.text([token for place, token in enumerate(encoded.completion_ids) if place not in given])


def test_the_marked_text_and_the_end_token_bear_the_loss(encode) -> None:
    assert learned(*encode(MARKED)) == f"{ANSWER}<|im_end|>"
    assert learned(*encode(NO_END)) == f"{ANSWER}<|im_end|>"


def test_what_the_template_writes_before_its_marks_is_given(encode) -> None:
    encoder, example = encode(BLOCK_GIVEN)
    assert learned(encoder, example) == f"{ANSWER}<|im_end|>"
    assert encoder.text(encoder.encode(example).completion_ids) == f"<think></think>{ANSWER}<|im_end|>"
    assert encoder.prompt_ids(example.segments) == encoder.encode(example).prompt_ids


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (HEADER_TOO, "marks aren't on the text of message 2 ('It is 4.')"),
        (WITHOUT_TEXT, "marks aren't on the text of message 2 ('It is 4.')"),
        (ON_QUESTIONS, "which is no answer: it comes before message 2"),
    ],
)
def test_marks_that_are_not_on_the_answer_are_refused_with_the_turn(
    encode, template: str, expected: str
) -> None:
    encoder, example = encode(template)
    with pytest.raises(TemplateError) as caught:
        encoder.sequences(example)
    assert expected in str(caught.value)
    assert str(caught.value).startswith("chat.jsonl:1: the chat template")


def test_marking_changes_no_white_space() -> None:
    template = "a\n  {%- generation -%}\n b {% endgeneration %}\nc"
    found = marking(template)
    assert found is not None
    assert "generation" not in found
    assert marking("no marks") is None


def test_marks_are_taken_out_of_the_text() -> None:
    assert unmarked("ab\ue000cd\ue001e\ue000\ue001") == ("abcde", ((2, 4),))
