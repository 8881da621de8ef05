"""Columns of a conversation that no template uses are named."""

import math

import pytest

from manytune.data.check import check
from manytune.data.records import Record, Records
from manytune.data.templates import NAMED_TEMPLATES, PromptTemplate
from manytune.data.unused import check_prompt, said_of_unused, unused_turns
from manytune.errors import TemplateError

ALPACA = NAMED_TEMPLATES["alpaca"]


def records(*rows: dict[str, object]) -> tuple[Record, ...]:
    return tuple(Record(fields, "x", row) for row, fields in enumerate(rows, start=1))


def alpaca(**more: object) -> dict[str, object]:
    return {"instruction": "i", "input": "", "output": "o", **more}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("system", "Be brief."),
        ("history", [["q", "a"]]),
        ("messages", [{"role": "user", "content": "hi"}]),
        ("conversations", [{"from": "human", "value": "hi"}]),
        ("tools", '[{"name": "add"}]'),
        ("System", "Be brief."),
        ("earlier", [{"role": "user", "content": "hi"}]),  # no known name, but turns
        ("log", [{"from": "human", "value": "hi", "weight": 1}]),
    ],
)
def test_a_column_of_a_conversation_that_the_template_does_not_use_is_counted(
    name: str, value: object
) -> None:
    rows = records(alpaca(), alpaca(**{name: value}), alpaca(**{name: value}))
    assert unused_turns(rows, [ALPACA]) == {name: 2}


@pytest.mark.parametrize("value", [None, math.nan, "", "  ", [], {}])
def test_an_empty_column_is_not_missed(value: object) -> None:
    assert unused_turns(records(alpaca(system=value, history=value)), [ALPACA]) == {}


def test_other_columns_are_not_named() -> None:
    assert unused_turns(records(alpaca(id=7, source="web", tags=["a"], score=[{"a": 1}])), [ALPACA]) == {}


@pytest.mark.parametrize(
    "template",
    [
        PromptTemplate("{{ system }} {{ instruction }}", "{{ output }}"),
        PromptTemplate("{{ instruction }}", "{{ output }}", system="{{ system or 'Be kind.' }}"),
        PromptTemplate("{{ fields['system'] }} {{ instruction }}", "{{ output }}"),
        PromptTemplate("{{ fields.system }} {{ instruction }}", "{{ output }}"),
        PromptTemplate("{{ instruction }}", "{{ output }}", group_by="system"),
        PromptTemplate("{% for name in fields %}{{ fields[name] }}{% endfor %}", "{{ output }}"),
    ],
)
def test_a_column_that_a_template_names_or_may_reach_is_used(template: PromptTemplate) -> None:
    assert unused_turns(records(alpaca(system="s")), [template]) == {}


def test_fields_by_name_say_nothing_of_other_fields() -> None:
    template = PromptTemplate("{{ fields['instruction'] }}", "{{ output }}")
    assert unused_turns(records(alpaca(system="s")), [template]) == {"system": 1}


def test_one_of_several_templates_that_uses_a_column_is_enough() -> None:
    using = PromptTemplate("{{ system }} {{ instruction }}", "{{ output }}")
    assert unused_turns(records(alpaca(system="s")), [ALPACA, using]) == {}


def test_the_sentence_names_columns_and_rows() -> None:
    assert said_of_unused({"system": 1, "history": 1200}) == (
        "the template doesn't use columns that look like part of the conversation: system (1 row), "
        "history (1,200 rows). To use one, write a prompt (or system) that names it"
    )
    assert said_of_unused({}) == ""


def test_the_check_of_a_file_says_it() -> None:
    found = check({"x": Records(records(alpaca(system="s"), alpaca()), ())}, template=ALPACA)
    assert found.files[0].unused == {"system": 1}
    assert found.passed


@pytest.mark.parametrize(
    ("prompt", "refused"),
    [
        ("question", True),
        (" question\n", True),
        ("What is {question}?", True),
        ("What is ${question}?", True),
        ("What is $question?", True),
        ("<question>", True),
        ("[question]", True),
        ("%(question)s", True),
        ("prompts/ask.jinja", True),
        ("What is {{ question }}?", False),
        ("{% for k in fields %}{{ k }} {% endfor %}{question}", False),
        ("Write a haiku.", False),
        ("Answer the question:", False),
        ("What is $questions?", False),
    ],
)
def test_a_prompt_that_is_the_same_for_every_row_is_refused_if_it_seems_to_mean_a_field(
    prompt: str, refused: bool
) -> None:
    (record,) = records({"question": "q", "answer": "a"})
    template = PromptTemplate(prompt, "{{ answer }}")
    if not refused:
        check_prompt(template, record)
        return
    with pytest.raises(TemplateError, match=r"^x:1: the prompt template"):
        check_prompt(template, record)
