"""What an adapter keeps of its encoding, and that it is asked with the same."""

from collections.abc import Callable
from typing import Any

import pytest

from manytune.data.encoding.encoding_options import EncodingOptions
from manytune.data.recipe import DataRecipe
from manytune.data.templates import Segment
from manytune.errors import DataError

MakeTokenizer = Callable[..., Any]
SWITCHED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ header }}{% endif %}{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}{{ header }}{% endif %}"
)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (EncodingOptions(), {}),
        (
            EncodingOptions({"a": [1, None]}, "2026-01-31", 7),
            {"chat_template_kwargs": {"a": [1, None]}, "date": "2026-01-31", "max_prompt": 7},
        ),
        (EncodingOptions(chat_template="{{ x }}"), {"chat_template": "{{ x }}"}),
    ],
)
def test_options_are_kept_as_what_is_set_and_read_back(
    options: EncodingOptions, expected: dict[str, Any]
) -> None:
    assert options.to_dict() == expected
    assert EncodingOptions.from_dict(expected) == options


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {"dat": "x"},
            "encoding options are chat_template_kwargs, date, max_prompt, chat_template, special_tokens_in_text, not "
            "'dat'",
        ),
        ({"date": 7}, "the encoding option date must be text, not int"),
        ({"date": "soon"}, "expected a date such as 2026-01-31, found 'soon'"),
        ({"max_prompt": True}, "the encoding option max_prompt must be a number, not bool"),
        ({"chat_template": 1}, "the encoding option chat_template must be text, not int"),
        ({"max_prompt": 0}, "max_prompt must be at least 1, not 0"),
        (
            {"chat_template_kwargs": []},
            "the encoding option chat_template_kwargs must be an object, not list",
        ),
    ],
)
def test_what_somebody_elses_manifest_says_is_checked(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(DataError) as caught:
        EncodingOptions.from_dict(values)
    assert str(caught.value) == expected


def test_the_encoder_of_the_options_makes_the_recipes_prompts(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(chat_template=SWITCHED)
    data = DataRecipe(train=("x.jsonl",), chat_template_kwargs={"header": "LOUD: "}, date="2026-01-31")
    segments = [Segment("user", "hi")]
    trained = data.encoder(tokenizer)
    kept = data.encoding_options().encoder(tokenizer, chat=None)
    assert kept.prompt_ids(segments) == trained.prompt_ids(segments)
    assert kept.text(kept.prompt_ids(segments)) == "hi<|im_end|>LOUD: "


def test_other_values_of_the_templates_variables_go_on_top(make_tokenizer: MakeTokenizer) -> None:
    options = EncodingOptions({"loud": True, "tone": "low"}, max_prompt=9).with_kwargs({"loud": False})
    assert options == EncodingOptions({"loud": False, "tone": "low"}, max_prompt=9)


@pytest.mark.parametrize(("chat", "mode"), [("auto", "chat"), (True, "chat"), (False, "plain")])
def test_the_recipe_can_turn_the_chat_template_off(
    make_tokenizer: MakeTokenizer, chat: Any, mode: str
) -> None:
    data = DataRecipe(train=("x.jsonl",), chat=chat)
    assert data.encoder(make_tokenizer(chat_template=SWITCHED)).mode == mode


def test_a_recipe_that_requires_a_chat_template_is_refused_without_one(make_tokenizer: MakeTokenizer) -> None:
    with pytest.raises(DataError, match="has no chat template"):
        DataRecipe(train=("x.jsonl",), chat=True).encoder(make_tokenizer())


@pytest.mark.parametrize(
    ("max_prompt", "positions", "new_tokens", "expected"),
    [(50, 64, 10, 50), (50, 64, 20, 44), (50, None, 20, 50), (50, 64, 64, 50), (None, 64, 20, None)],
)
def test_prompts_that_are_cut_leave_room_for_the_answer(
    max_prompt: int | None, positions: int | None, new_tokens: int, expected: int | None
) -> None:
    assert EncodingOptions(max_prompt=max_prompt).within(positions, new_tokens).max_prompt == expected


def test_an_adapters_own_chat_template_makes_its_prompts_and_leaves_the_tokenizer_alone(
    make_tokenizer: MakeTokenizer,
) -> None:
    tokenizer = make_tokenizer(chat_template=SWITCHED)
    own = "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|im_end|>{% endfor %}"
    own += "{% if add_generation_prompt %}[assistant]{% endif %}"
    for base in (tokenizer, make_tokenizer(chat_template=None)):
        before = base.chat_template
        encoder = EncodingOptions(chat_template=own).encoder(base, chat=None)
        ids = encoder.prompt_ids([Segment("user", "hi")])
        assert tokenizer.decode(ids) == "[user]hi<|im_end|>[assistant]"
        assert base.chat_template == before
