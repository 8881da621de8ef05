"""How records become examples, and what is said about a template or a row that doesn't fit."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from manytune.data.records import Record, Rejected
from manytune.data.templates import (
    NAMED_TEMPLATES,
    Example,
    PromptTemplate,
    Segment,
    choose_template,
    load_template,
    named_template,
    render_all,
)
from manytune.errors import TemplateError

PLAIN = PromptTemplate(prompt="Summarize:\n\n{{ document }}", completion="{{ summary }}")


def record(row: int = 17, **fields: object) -> Record:
    return Record(fields, "train.jsonl", row)


def prompt_of(prompt: str, **fields: object) -> str:
    return PromptTemplate(prompt, "{{ y }}").render(record(**fields, y="y")).segments[-1].text


def message(prompt: str, **fields: object) -> str:
    with pytest.raises(TemplateError) as caught:
        prompt_of(prompt, **fields)
    return str(caught.value)


def test_a_record_becomes_an_example_with_its_place() -> None:
    assert PLAIN.render(record(document="A long text.", summary="Short.")) == Example(
        segments=(Segment("user", "Summarize:\n\nA long text."),),
        completion="Short.",
        source="train.jsonl",
        row=17,
    )


def test_the_system_text_is_a_segment_of_its_own() -> None:
    template = PromptTemplate("{{ x }}", "{{ y }}", system="Answer in {{ language }}.")
    assert template.render(record(x="a", y="b", language="Welsh")).segments == (
        Segment("system", "Answer in Welsh."),
        Segment("user", "a"),
    )


def test_group_by_takes_a_fields_value_as_text() -> None:
    template = PromptTemplate("{{ x }}", "{{ y }}", group_by="paper")
    assert template.render(record(x="a", y="b", paper=7)).group == "7"


@pytest.mark.parametrize("fields", [{}, {"paper": None}])
def test_a_row_without_its_group_is_an_error(fields: dict[str, object]) -> None:
    template = PromptTemplate("{{ x }}", "{{ y }}", group_by="paper")
    with pytest.raises(TemplateError, match=r"train\.jsonl:17: group_by needs the field 'paper'"):
        template.render(record(x="a", y="b", **fields))


def test_a_prompt_can_be_rendered_without_the_completions_fields() -> None:
    assert PLAIN.render_prompt({"document": "d"}) == (Segment("user", "Summarize:\n\nd"),)


def test_white_space_is_kept_as_written() -> None:
    assert prompt_of("\n  {{ x }}\n\n{% if x %}\nz{% endif %}\n", x=" a\n") == "\n   a\n\n\n\nz\n"


def test_markup_in_fields_is_text() -> None:
    assert prompt_of("{{ x }}", x="{{ y }} <b> & {% if %}") == "{{ y }} <b> & {% if %}"


def test_numbers_and_booleans_print_as_python_writes_them() -> None:
    assert prompt_of("{{ a }} {{ b }} {{ c }}", a=0, b=1.5, c=False) == "0 1.5 False"


def test_nested_fields_lists_and_odd_names_can_be_reached() -> None:
    text = prompt_of(
        "{{ parts | join(' ') }} {{ talk[0].content }} {{ fields['Full text'] }}",
        parts=["a", "b"],
        talk=[{"content": "c"}],
        **{"Full text": "d"},
    )
    assert text == "a b c d"


def test_a_missing_field_is_named_with_those_that_exist_and_the_nearest() -> None:
    assert message("{{ documnet }}", document="d", id=1) == (
        "train.jsonl:17: the prompt template needs the field 'documnet'; "
        "this row has document, id, y; did you mean 'document'?"
    )


def test_a_missing_field_inside_an_object_is_named_with_its_siblings() -> None:
    assert message("{{ summary.chalenge }}", summary={"challenge": "c", "outcome": "o"}) == (
        "train.jsonl:17: the prompt template needs the field 'chalenge'; "
        "this row has challenge, outcome; did you mean 'challenge'?"
    )


@pytest.mark.parametrize("name", ["range", "dict", "lipsum", "namespace"])
def test_a_missing_field_is_not_found_among_jinjas_own_names(name: str) -> None:
    assert f"the prompt template needs the field '{name}'" in message(f"{{{{ {name} }}}}")


def test_optional_fields_can_be_asked_for() -> None:
    optional = "{% if note is defined %}{{ note }}: {% endif %}{{ text or 'nothing' }}"
    assert prompt_of(optional, text=None) == "nothing"
    assert prompt_of(optional, text="t", note="n") == "n: t"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "prints the field 'x', which is null here; give it a default: {{ x | default('...') }}"),
        (["a", "b"], "prints the field 'x', which is a list; join it: {{ x | join(' ') }}"),
        (
            {"a": 1, "b": 2},
            "prints the field 'x', which is an object with a, b; name one of them, or print it as JSON: "
            "{{ x | tojson }}",
        ),
        (b"a", "prints the field 'x', which is bytes; decode it first: {{ x.decode() }}"),
    ],
)
def test_a_value_without_a_text_form_is_an_error_not_python_source(value: object, expected: str) -> None:
    assert message("{{ x }}", x=value) == f"train.jsonl:17: the prompt template {expected}"


def test_a_key_that_is_hidden_by_a_method_is_explained() -> None:
    assert message("{{ x.items }}", x={"items": "i"}).endswith(
        "prints an expression, which is a function; a key of that name is reached as {{ field['key'] }}"
    )


@pytest.mark.parametrize("value", ["", "  \n"])
def test_an_empty_prompt_or_completion_is_an_error(value: str) -> None:
    assert message("{{ x }}", x=value) == "train.jsonl:17: the prompt is empty; its template is '{{ x }}'"
    with pytest.raises(TemplateError, match="the completion is empty"):
        PLAIN.render(record(document="d", summary=value))


def test_a_template_that_fails_names_the_row_and_the_failure() -> None:
    assert message("{{ 1 / n }}", n=0) == (
        "train.jsonl:17: the prompt template failed: ZeroDivisionError: division by zero"
    )


@pytest.mark.parametrize("attack", ["{{ x.__class__.__mro__ }}", "{{ x.append(1) }}"])
def test_templates_run_in_a_sandbox(attack: str) -> None:
    assert "SecurityError" in message(attack, x=[])


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a\nb {{ x", "the prompt template, line 2, isn't valid: unexpected end of template"),
        ("{% if x %}", "the prompt template, line 1, isn't valid: Unexpected end of template"),
        (
            "a\n\n{{ x | shout }}",
            "the prompt template, line 3, isn't valid: No filter named 'shout': '{{ x | shout }}'",
        ),
    ],
)
def test_a_syntax_error_names_the_templates_line(prompt: str, expected: str) -> None:
    with pytest.raises(TemplateError) as caught:
        PromptTemplate(prompt, "{{ y }}")
    assert str(caught.value).startswith(expected)


def test_a_completion_that_names_no_field_is_an_error() -> None:
    with pytest.raises(
        TemplateError, match=r"'\{summary\}'\. Write fields in double braces, as in \{\{ summary \}\}"
    ):
        PromptTemplate("{{ x }}", "{summary}")


# Many records


def test_skipped_rows_are_returned_with_the_reason() -> None:
    records = [
        record(1, document="d", summary="s"),
        record(2, document="d", summary=" "),
        record(3, document="d"),
    ]
    rendered = render_all(PLAIN, records, on_error="skip")
    assert [example.row for example in rendered.kept] == [1]
    assert rendered.rejected == (
        Rejected("train.jsonl", 2, "the completion is empty; its template is '{{ summary }}'"),
        Rejected(
            "train.jsonl", 3, "the completion template needs the field 'summary'; this row has document"
        ),
    )


def test_without_skipping_the_first_row_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(TemplateError, match=r"^train\.jsonl:2: the completion is empty"):
        render_all(PLAIN, [record(1, document="d", summary="s"), record(2, document="d", summary="")])


# Templates by name, from files, to and from dictionaries


@pytest.mark.parametrize(
    ("name", "fields", "prompt", "completion"),
    [
        ("summarize", {"document": "D", "summary": "S"}, "Summarize the following text.\n\nD", "S"),
        ("prompt-completion", {"prompt": "P", "completion": "C"}, "P", "C"),
        ("question-answer", {"question": "Q", "answer": "A"}, "Q", "A"),
        ("question-answer", {"question": "Q", "context": "X", "answer": "A"}, "X\n\nQ", "A"),
        ("alpaca", {"instruction": "I", "input": "", "output": "O"}, "I", "O"),
        ("alpaca", {"instruction": "I", "input": "N", "output": "O"}, "I\n\nN", "O"),
        ("alpaca", {"instruction": "I", "output": "O"}, "I", "O"),
        ("question-answer", {"question": "Q", "context": None, "answer": "A"}, "Q", "A"),
    ],
)
def test_named_templates(name: str, fields: dict[str, object], prompt: str, completion: str) -> None:
    example = named_template(name).render(record(**fields))
    assert (example.segments, example.completion) == ((Segment("user", prompt),), completion)


def test_an_unknown_name_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(TemplateError) as caught:
        named_template("sumarize")
    assert str(caught.value) == (
        "no template is named 'sumarize'; did you mean 'summarize'? "
        "Known: alpaca, prompt-completion, question-answer, summarize; or give a .yaml or .json file"
    )


@pytest.mark.parametrize(
    "template", [*NAMED_TEMPLATES.values(), PromptTemplate("{{ x }}", "{{ y }}", "s", "g")]
)
def test_a_template_survives_json(template: PromptTemplate) -> None:
    assert PromptTemplate.from_dict(json.loads(json.dumps(template.to_dict()))) == template


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"prompt": "p"}, "a template needs the keys prompt and completion; completion is missing"),
        (
            {"promt": "p"},
            "a template has the keys prompt, completion, system, group_by, references, "
            "not 'promt'; did you mean 'prompt'?",
        ),
        ({"prompt": None, "completion": "{{ y }}"}, "the template's prompt must be text, not NoneType"),
        ({"prompt": "p", "completion": 3}, "the template's completion must be text, not int"),
    ],
)
def test_a_dictionary_that_is_no_template_is_an_error(parts: dict[str, object], expected: str) -> None:
    with pytest.raises(TemplateError) as caught:
        PromptTemplate.from_dict(parts)
    assert str(caught.value) == expected


def test_a_description_is_a_name_a_file_or_the_parts(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    file.write_text(json.dumps(PLAIN.to_dict()))
    assert choose_template() is None
    assert choose_template("alpaca") == NAMED_TEMPLATES["alpaca"]
    assert choose_template(str(file), group_by="id") == replace(PLAIN, group_by="id")
    assert choose_template(prompt="{{ x }}", completion="{{ y }}", system="s") == PromptTemplate(
        "{{ x }}", "{{ y }}", "s"
    )


@pytest.mark.parametrize(
    ("description", "expected"),
    [
        ({"name": "alpaca", "prompt": "{{ x }}"}, "give either a template, or prompt and completion"),
        ({"prompt": "{{ x }}"}, "prompt and completion go together; the completion is missing"),
        ({"completion": "{{ x }}"}, "prompt and completion go together; the prompt is missing"),
        ({"system": "s"}, "a system message goes with a template, or with prompt and completion"),
    ],
)
def test_half_a_description_is_an_error(description: dict[str, str], expected: str) -> None:
    with pytest.raises(TemplateError) as caught:
        choose_template(**description)  # type: ignore[arg-type]
    assert str(caught.value) == expected


def test_template_files_are_yaml_or_json(tmp_path: Path) -> None:
    expected = PromptTemplate("Summarize:\n{{ text }}\n", "{{ summary }}", system="Be brief.")
    yaml_file = tmp_path / "t.yaml"
    yaml_file.write_text(
        "system: Be brief.\nprompt: |\n  Summarize:\n  {{ text }}\ncompletion: '{{ summary }}'\n"
    )
    json_file = tmp_path / "t.json"
    json_file.write_text(json.dumps(expected.to_dict()))
    assert load_template(yaml_file) == load_template(json_file) == expected


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("t.yaml", "prompt: {{ x }}\n", "the template file can't be read: "),
        ("t.json", "{", "the template file can't be read: "),
        ("t.yaml", "- a\n", "a template file holds the keys prompt and completion, not a list"),
        ("t.yaml", "prompt: '{{ x'\ncompletion: '{{ y }}'\n", "the prompt template, line 1, isn't valid"),
    ],
)
def test_a_template_file_that_cannot_be_used_is_named(
    tmp_path: Path, name: str, content: str, expected: str
) -> None:
    file = tmp_path / name
    file.write_text(content)
    with pytest.raises(TemplateError) as caught:
        load_template(file)
    assert str(caught.value).startswith(f"{file}: {expected}")


def test_a_missing_template_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match=r"none\.yaml: the template file can't be read: .*No such file"):
        load_template(tmp_path / "none.yaml")
