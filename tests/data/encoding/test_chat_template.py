"""What a chat template puts around an answer, its options, and its date."""

import datetime
from collections.abc import Callable
from typing import Any

import pytest

from manytune.data.encoding.answer_format import AnswerFormat
from manytune.data.encoding.chat_template import end_token_of
from manytune.data.encoding.encode import Encoder
from manytune.data.templates import Example, Segment
from manytune.errors import DataError, TemplateError

MakeTokenizer = Callable[..., Any]

# The behaviour of published templates, without their tools.
QWEN3 = r"""{%- for m in messages %}
{%- if m.role == 'assistant' %}
{%- set reasoning = m.reasoning_content if m.reasoning_content is string else '' %}
{%- set content = m.content %}
{%- if '</think>' in content and not reasoning %}
{%- set reasoning = content.split('</think>')[0].split('<think>')[-1] %}
{%- set content = content.split('</think>')[-1] %}
{%- endif %}
{%- if loop.last %}
{{- '<|im_start|>assistant\n<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
{%- else %}{{- '<|im_start|>assistant\n' + content }}{%- endif %}
{{- '<|im_end|>\n' }}
{%- else %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{%- endif %}"""
QWEN3_THINKING = QWEN3.replace(
    "{{- '<|im_start|>assistant\\n' }}\n", "{{- '<|im_start|>assistant\\n<think>\\n' }}\n"
)
GLM = r"""{%- for m in messages %}{{ '<|im_start|>' + m.role }}
{%- if m.role == 'assistant' %}
{%- if m.reasoning_content %}{{ '\n<think>' + m.reasoning_content.strip() + '</think>' }}
{%- else %}{{ '\n<think></think>' }}{%- endif %}{{ '\n' + m.content + '<|im_end|>' }}
{%- else %}{{ '\n' + m.content }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant' }}{%- endif %}"""
DEEPSEEK = r"""{%- for m in messages %}{%- if m.role == 'assistant' %}
{%- set content = m.content %}
{%- if '</think>' in content %}{%- set content = content.split('</think>')[-1] %}{%- endif %}
{{- '<|im_start|>' + content + '<|im_end|>' }}{%- else %}{{- m.content }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>' }}{%- endif %}"""
LINE_BEFORE_END = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}\n<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HEADER_LEARNED = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
DATED = (
    "{%- if strftime_now is defined %}\n    {%- set today = strftime_now('%-d %b %Y, %A %H:%M %%') %}\n"
    "  {%- endif %}\n{{- 'Today: ' + today + '\\n' }}"
    "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)
PLAIN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def example(prompt: str = "1 + 2 =", completion: str = "3") -> Example:
    return Example((Segment("user", prompt),), completion, "train.jsonl", 5)


def trained(encoder: Encoder, item: Example) -> str:
    """What a model that learned the example by heart generates: all but the end token."""
    ids = encoder.encode(item).completion_ids
    assert ids[-1] == encoder.end_id
    return encoder.text(ids[:-1])


@pytest.mark.parametrize(
    ("template", "options", "opening", "closing", "reasoning"),
    [
        (QWEN3, {}, "<think>\n\n</think>\n\n", "", ("<think>\n", "\n</think>\n\n")),
        (QWEN3, {"enable_thinking": False}, "", "", ("<think>", "</think>")),
        (QWEN3_THINKING, {}, "\n</think>\n\n", "", ("", "\n</think>\n\n")),
        (GLM, {}, "\n<think></think>\n", "", ("\n<think>", "</think>\n")),
        (DEEPSEEK, {}, "", "", ("<think>", "</think>")),
        (LINE_BEFORE_END, {}, "", "\n", None),
        (HEADER_LEARNED, {}, "<|im_start|>assistant\n", "", None),
        (PLAIN, {}, "", "", None),
    ],
)
def test_what_stands_around_an_answer_is_found_in_the_template(
    make_tokenizer: MakeTokenizer,
    template: str,
    options: dict[str, Any],
    opening: str,
    closing: str,
    reasoning: tuple[str, str] | None,
) -> None:
    encoder = Encoder(make_tokenizer(chat_template=template), max_length=None, chat_template_kwargs=options)
    assert encoder.answers == AnswerFormat(opening, closing, "<|im_end|>", reasoning)


@pytest.mark.parametrize(
    "template", [QWEN3, QWEN3_THINKING, GLM, DEEPSEEK, LINE_BEFORE_END, HEADER_LEARNED, PLAIN, None]
)
@pytest.mark.parametrize("completion", ["3", "<|im_start|>add(1, 2)", "a <b> c", "def f():\n    return 3"])
def test_the_answer_of_a_model_that_learned_an_example_is_its_reference(
    make_tokenizer: MakeTokenizer, template: str | None, completion: str
) -> None:
    encoder = Encoder(make_tokenizer(chat_template=template), max_length=None)
    item = example(completion=completion)
    assert encoder.answers.read(trained(encoder, item)).content == encoder.reference(item) == completion


def test_reasoning_in_a_completion_is_no_part_of_the_answer(make_tokenizer: MakeTokenizer) -> None:
    encoder = Encoder(make_tokenizer(chat_template=QWEN3), max_length=None)
    item = example(completion="<think>\n1 and 2 make 3\n</think>\n\n3")
    assert trained(encoder, item) == item.completion
    reply = encoder.answers.read(trained(encoder, item))
    assert (reply.content, reply.reasoning) == ("3", "1 and 2 make 3")
    assert encoder.reference(item) == "3"


def test_an_answer_before_a_turn_isnt_taken_for_the_last_one(make_tokenizer: MakeTokenizer) -> None:
    encoder = Encoder(make_tokenizer(chat_template=QWEN3), max_length=None)
    segments = (Segment("user", "a"), Segment("assistant", "b"), Segment("user", "c"))
    item = Example(segments, "d", "train.jsonl", 5)
    assert encoder.answers.read(trained(encoder, item)).content == "d"
    assert "<think>" not in encoder.text(encoder.prompt_ids(segments))


# Options


def test_the_templates_own_options_reach_it(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(chat_template=QWEN3)
    encoder = Encoder(tokenizer, max_length=None, chat_template_kwargs={"enable_thinking": False})
    assert encoder.text(encoder.prompt_ids(example().segments)).endswith("<think>\n\n</think>\n\n")
    assert trained(encoder, example()) == "3"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"enable_thinkin": False},
            "the chat template has no variable 'enable_thinkin'; did you mean 'enable_thinking'?",
        ),
        ({"messages": []}, "'messages' isn't an option of the template; manytune sets it"),
        ({"add_generation_prompt": True}, "'add_generation_prompt' isn't an option"),
        ({"tokenize": True}, "'tokenize' isn't an option"),
        ({"strftime_now": "x"}, "'strftime_now' isn't an option"),
    ],
)
def test_an_option_that_would_be_ignored_is_an_error(
    make_tokenizer: MakeTokenizer, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(DataError) as caught:
        Encoder(make_tokenizer(chat_template=QWEN3), max_length=None, chat_template_kwargs=options)
    assert expected in str(caught.value)


@pytest.mark.parametrize("chat", [None, False])
def test_options_without_a_chat_template_are_an_error(
    make_tokenizer: MakeTokenizer, chat: bool | None
) -> None:
    tokenizer = make_tokenizer(chat_template=None if chat is None else QWEN3)
    with pytest.raises(DataError, match="chat_template_kwargs go to a chat template, and there is none"):
        Encoder(tokenizer, max_length=None, chat=chat, chat_template_kwargs={"enable_thinking": False})


def test_a_template_that_is_refused_names_the_key_that_turns_it_off(make_tokenizer: MakeTokenizer) -> None:
    different = PLAIN.replace("assistant\n{% endif", "answer:{% endif")
    with pytest.raises(TemplateError, match=r"data\.chat: false"):
        Encoder(make_tokenizer(chat_template=different), max_length=None)
    assert Encoder(make_tokenizer(chat_template=different), max_length=None, chat=False).mode == "plain"


def test_the_end_token_of_a_template_that_is_refused_is_known(make_tokenizer: MakeTokenizer) -> None:
    different = PLAIN.replace("assistant\n{% endif", "answer:{% endif")
    special = ("</s>", "<|im_end|>")
    assert end_token_of(make_tokenizer(chat_template=different), special) == "<|im_end|>"
    assert end_token_of(make_tokenizer(chat_template=PLAIN), special) == "<|im_end|>"
    assert end_token_of(make_tokenizer(chat_template="{{ raise_exception('no') }}"), special) is None
    assert end_token_of(make_tokenizer(), special) is None


def test_reasoning_of_earlier_turns_reaches_a_template_that_takes_it(make_tokenizer: MakeTokenizer) -> None:
    encoder = Encoder(make_tokenizer(chat_template=GLM), max_length=None)
    segments = [Segment("user", "a"), Segment("assistant", "b", reasoning="so"), Segment("user", "c")]
    assert "<think>so</think>\nb" in encoder.text(encoder.prompt_ids(segments))


# The date


def test_a_template_with_todays_date_gets_the_date_that_the_encoder_is_given(
    make_tokenizer: MakeTokenizer,
) -> None:
    tokenizer = make_tokenizer(chat_template=DATED)
    day = datetime.datetime(2026, 3, 5, 17, 4)
    encoder = Encoder(tokenizer, max_length=None, now=day)
    assert encoder.uses_date
    assert encoder.text(encoder.prompt_ids(example().segments)) == (
        "Today: 5 Mar 2026, Thursday 17:04 %\n<|im_start|>1 + 2 =<|im_end|>\n<|im_start|>"
    )
    assert trained(encoder, example()) == "3"


def test_but_for_the_date_it_is_what_transformers_renders(make_tokenizer: MakeTokenizer) -> None:
    dated = DATED.replace(" %H:%M %%", "")
    tokenizer = make_tokenizer(chat_template=dated)
    messages = [{"role": "user", "content": "hi"}]
    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    encoder = Encoder(tokenizer, max_length=None, now=datetime.datetime.now())
    assert encoder.text(encoder.prompt_ids([Segment("user", "hi")])) == expected


@pytest.mark.parametrize("beginning", ["", "\n", "  ", "  \n", "  {% if true %}x{% endif %}\n"])
def test_the_templates_first_line_is_as_without_a_date(make_tokenizer: MakeTokenizer, beginning: str) -> None:
    template = beginning + "{{ '' if strftime_now is defined }}" + PLAIN
    tokenizer = make_tokenizer(chat_template=template)
    messages = [{"role": "user", "content": "hi"}]
    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    encoder = Encoder(tokenizer, max_length=None, now=datetime.datetime.now())
    assert encoder.text(encoder.prompt_ids([Segment("user", "hi")])) == expected


def test_a_template_without_a_date_says_so(make_tokenizer: MakeTokenizer) -> None:
    assert not Encoder(make_tokenizer(chat_template=PLAIN), max_length=None).uses_date
    assert not Encoder(make_tokenizer(), max_length=None).uses_date


def test_what_is_written_like_the_format_is_left_alone(make_tokenizer: MakeTokenizer) -> None:
    encoder = Encoder(make_tokenizer(chat_template=DATED), max_length=None, now=datetime.datetime(2026, 3, 5))
    assert "%Y-%m" in encoder.text(encoder.prompt_ids([Segment("user", "%Y-%m")]))
