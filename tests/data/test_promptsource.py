"""The promptsource format: what its templates make of rows, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.reference.promptsource_apply import apply

from manytune.data.promptsource import from_promptsource, load_promptsource
from manytune.data.records import Record
from manytune.errors import TemplateError

FILE = """\
dataset: invented
subset: null
templates:
  0001: !Template
    answer_choices: No ||| Yes
    id: '0001'
    jinja: "{{ passage }}\\n\\nIs it true that {{ question }}? ||| {{ answer_choices[label] }}"
    metadata: !TemplateMetadata
      choices_in_prompt: false
      languages: [en]
      metrics: [Accuracy]
      original_task: true
    name: is it true
    reference: ''
  0002: !Template
    answer_choices: null
    id: '0002'
    jinja: "Ask something about this. {{ passage }} ||| {{ question }}?"
    metadata: !TemplateMetadata {}
    name: ask
    reference: ''
"""
ROW = {
    "passage": " Ferries ||| boats. ",
    "question": "they float",
    "label": 1,
    "words": ["b", "a", "b"],
    "one": " yes ",
    "two": "no",
    "kind": "cause",
}


def segments(jinja: str, choices: str | None = None) -> list[str]:
    """The prompt and the completion that our two templates make of the row."""
    example = from_promptsource(jinja, choices).render(Record(ROW, "rows", 1))
    return [example.segments[0].text, example.completion]


def refusal(jinja: str, choices: str | None = None) -> str:
    with pytest.raises(TemplateError) as caught:
        from_promptsource(jinja, choices)
    return str(caught.value)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "templates.yaml").write_text(FILE)
    return tmp_path / "templates.yaml"


def test_a_file_gives_its_templates_by_name(file: Path) -> None:
    found = load_promptsource(file)
    assert list(found) == ["is it true", "ask"]
    example = found["is it true"].render(Record({"passage": "P.", "question": "q", "label": 1}, "rows", 1))
    assert example.segments[0].text == "P.\n\nIs it true that q?"
    assert example.completion == "Yes"


def test_named_templates_come_in_the_order_of_the_names(file: Path) -> None:
    assert list(load_promptsource(file, ["ask", "is it true"])) == ["ask", "is it true"]


def test_the_prompt_of_a_row_without_an_answer_can_be_made(file: Path) -> None:
    (user,) = load_promptsource(file)["is it true"].render_prompt({"passage": "P.", "question": "q"})
    assert user.text == "P.\n\nIs it true that q?"


@pytest.mark.parametrize(
    ("jinja", "choices"),
    [
        ("{{ passage }} True? ||| {{ answer_choices[label] }}", "No ||| Yes"),
        (" \n{{ passage }} \n|||\n {{ question }}\n", None),
        ("{{ one }}{{ passage }}|||{{ one }}", None),
        ('{{ answer_choices | join(" or ") }}? ||| {{ answer_choices[label] }}', "{{ one }} ||| {{ two }}"),
        ("{{ passage }} ||| {{ answer_choices[label] }}", 'He said "no" \\ ||| ja, schön 😀'),
        ("{% set x = question %}{{ x }}? ||| Indeed {{ x }}", None),
        ("{% set x %}{{ question }}!{% endset %}{{ x }} ||| {{ x }}", None),
        (
            "{% if label %}{% set x = 'A' %}{% else %}{% set x = 'B' %}{% endif %}{{ question }} ||| {{ x }}",
            None,
        ),
        ("{% if label %}{{ one }}{% else %}{{ two }}{% endif %} Why? ||| {{ question }}", None),
        ("{{ question }} ||| {% if label %}{{ one }}{% else %}{{ two }}{% endif %}", None),
        ("{% if kind == 'cause' %}\n {{ question }}? ||| {{ one }}\n{% endif %}", None),
        (
            "{% if not label %}A ||| {{ two }}{% elif kind %}B ||| {{ one }}{% else %}C ||| {{ one }}{% endif %} .",
            None,
        ),
        ("{% for w in words %}{{ w }}, {% endfor %} ||| {% for w in words %}{{ w }}{% endfor %}", None),
        ("{{ passage -}}   {# no comment #} x ||| {{ words | join }}", None),
        ("{% filter upper %}{{ question }}{% endfilter %} ||| {{ {'a=b': one}['a=b'] }}", None),
    ],
)
def test_both_parts_are_what_cutting_the_whole_gives(jinja: str, choices: str | None) -> None:
    assert segments(jinja, choices) == apply(jinja, choices, ROW)


@pytest.mark.parametrize(
    "jinja",
    [
        "{% if kind == 'effect' %}{{ question }} ||| {{ one }}{% endif %}",
        "So. {% if kind == 'effect' %}{{ question }} ||| {{ one }}{% endif %}",
    ],
)
def test_a_template_that_does_not_apply_to_a_row_makes_nothing_of_it(jinja: str) -> None:
    assert apply(jinja, None, ROW) in ([""], ["So."])
    with pytest.raises(TemplateError, match=r"^rows:1: the (prompt|completion) is empty"):
        segments(jinja)


def test_choice_takes_the_same_option_of_the_same_row_in_both_parts_and_differs_between_rows() -> None:
    template = from_promptsource("{{ words | choice }} {{ id }} ||| {{ words | choice }}")
    chosen = set()
    for number in range(20):
        row = Record({"words": ["a", "b", "c"], "id": number}, "rows", 1)
        example = template.render(row)
        assert example == template.render(row)
        assert example.segments[0].text.split()[0] == example.completion
        chosen.add(example.completion)
    assert chosen == {"a", "b", "c"}


def test_most_frequent_gives_every_item_that_is_most_frequent() -> None:
    assert segments(
        "{{ words | most_frequent | join }} ||| {{ [kind, two, one, two, kind] | most_frequent | join }}"
    ) == [
        "b",
        "causeno",
    ]


@pytest.mark.parametrize(
    ("jinja", "message"),
    [
        ("{{ a }}", "there is no ||| between an input and a target: '{{ a }}'"),
        ("{{ a }} ||| {{ b }} ||| {{ c }}", "several targets (more than one |||) aren't supported"),
        ("{{ a }}|||{% if b %}{{ b }}|||{{ c }}{% endif %}", "several targets"),
        ("{% if a %}{{ a }}|||{{ b }}{% endif %}|||{{ c }}", "several targets"),
        ("{{ a }} ||| {{ b | join('|||') }}", "||| inside an expression isn't supported"),
        ("{% for x in a %}{{ x }}|||{{ b }}{% endfor %}", "||| inside a for block isn't supported"),
        (
            "{% if a %}{{ a }}|||{{ b }}{% endif %} end",
            "text after an if with ||| in only some of its branches",
        ),
        ("{% macro m() %}{% endmacro %}{{ a }}|||{{ b }}", "{% macro %} isn't supported"),
        ("{% include 'x' %}{{ a }}|||{{ b }}", "{% include %} isn't supported"),
        ("{% raw %}{{{% endraw %}{{ a }}|||{{ b }}", "{% raw %} isn't supported"),
        ("{% for x, y in zip(a, b) %}{{ x }}{% endfor %}|||{{ b }}", "the function zip() isn't supported"),
        ("{{ a }} ||| {{ answer_choices[0] }}", "it uses answer_choices, and the file gives none"),
        (
            "{{ a | highlight }} ||| {{ b }}",
            "the promptsource template, line 1, isn't valid: No filter named",
        ),
        ("{{ a ||| {{ b }}", "the promptsource template, line 1, isn't valid"),
        ("{{ a }} ||| yes", "the completion template names no field"),
    ],
)
def test_what_is_not_supported_is_named(jinja: str, message: str) -> None:
    assert message in refusal(jinja)


def test_an_error_names_the_file_and_the_template(file: Path) -> None:
    file.write_text(FILE.replace('{{ question }}?"', '{{ zip(a, b) }}?"'))
    with pytest.raises(TemplateError, match=r"templates\.yaml: the template 'ask': the function zip\(\)"):
        load_promptsource(file)
    assert list(load_promptsource(file, ["is it true"])) == ["is it true"]


def test_a_name_that_is_not_in_the_file_gets_the_nearest(file: Path) -> None:
    with pytest.raises(
        TemplateError, match=r"no template is named 'aks'; did you mean 'ask'\? There are: 'is it"
    ):
        load_promptsource(file, ["aks"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("templates: {a: !!python/object/apply:os.getcwd []}", "could not determine a constructor"),
        ("templates: {a: !Other {name: x}}", "could not determine a constructor for the tag '!Other'"),
        ("templates: {}", "has templates under the key templates"),
        ("- 1", "has templates under the key templates"),
        ("templates: {a: 1}", "templates.a isn't a !Template"),
        ("templates: {a: !Template {name: x}}", "templates.a.jinja: expected text; found None"),
        (
            "templates: {a: !Template {name: x, jinja: y, answer_choices: [1]}}",
            "answer_choices: expected text",
        ),
        (
            "templates: {a: !Template {name: x, jinja: y}, b: !Template {name: x, jinja: y}}",
            "two templates are named 'x'",
        ),
        ("templates: [", "the promptsource file can't be read"),
    ],
)
def test_a_file_that_is_not_in_the_format_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "templates.yaml"
    path.write_text(content)
    with pytest.raises(TemplateError) as caught:
        load_promptsource(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)
