"""Null, NaN and objects never become text, whatever way they take; text, numbers and dates do, as before."""

import datetime
import math
from decimal import Decimal
from pathlib import Path

import pytest
from jinja2.defaults import DEFAULT_FILTERS

from manytune.data.promptsource import from_promptsource
from manytune.data.readers import read
from manytune.data.records import Record
from manytune.data.splits import record_key
from manytune.data.templates import NAMED_TEMPLATES, PromptTemplate, render_all
from manytune.errors import DataError, TemplateError

MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]


class Image:
    """What `datasets` decodes a column of images to: an object without a text form."""


def render(prompt: str, **fields: object) -> str:
    row = Record({**fields, "y": "y"}, "train.jsonl", 17)
    return PromptTemplate(prompt, "{{ y }}").render(row).segments[-1].text


def message(prompt: str, **fields: object) -> str:
    with pytest.raises(TemplateError) as caught:
        render(prompt, **fields)
    return str(caught.value)


# Every way to text

WAYS = [
    "{{ x }}",
    "{{ x | trim }}",
    "{{ x | string }}",
    "{{ x | upper }}",
    "{{ x | lower }}",
    "{{ x | title }}",
    "{{ x | escape }}",
    "{{ x | safe }}",
    "{{ x | center(9) }}",
    "{{ x | indent }}",
    "{{ x | truncate(40) }}",
    "{{ x | urlencode }}",
    "{{ x | pprint }}",
    "{{ x | wordcount }}",
    "{{ x | replace('a', 'b') }}",
    "{{ 'abc' | replace('b', x) }}",
    "{{ 'abc' | replace(x, 'b') }}",
    "{{ [x, 'b'] | join(' ') }}",
    "{{ ['a', 'b'] | join(x) }}",
    "{{ [{'k': x}] | join(' ', attribute='k') }}",
    "{{ [x] | map('trim') | join }}",
    "{{ [x] | map('string') | list | first }}",
    "{{ '%s' | format(x) }}",
    "{{ '%(k)s' | format(k=x) }}",
    "{{ '%s' % x }}",
    "{{ '%s and %s' % ('a', x) }}",
    "{{ '%(k)s' % {'k': x} }}",
    "{{ 'a' + x }}",
    "{{ x + 'a' }}",
    "{{ 'a' ~ x }}",
    "{{ x ~ 'a' ~ x }}",
    "{{ '{}'.format(x) }}",
    "{{ '{k}'.format(k=x) }}",
    "{{ '{k[0]}'.format(k=[x]) }}",
    "{{ '{!r}'.format(x) }}",
    "{{ '{k}'.format_map({'k': x}) }}",
    "{{ ' '.join([x]) }}",
    "{% set z = x %}{{ z | trim }}",
    "{% set z %}{{ x }}{% endset %}{{ z }}",
    "{% macro m(z) %}{{ z }}{% endmacro %}{{ m(x) }}",
    "{% macro m(z) %}{{ z ~ '' }}{% endmacro %}{{ m(x) }}",
    "{% for z in [x] %}{{ z | trim }}{% endfor %}",
    "{% filter upper %}{{ x }}{% endfilter %}",
    "{% if true %}{{ x | trim if true else '' }}{% endif %}",
    "{{ {'k': x}.get('k') | trim }}",
    "{{ [x, x] | first | trim }}",
    "{{ fields.x | trim }}",
    "{{ fields['x'] ~ '' }}",
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "value", [None, math.nan, MESSAGES[0], MESSAGES, b"hi", Image()], ids=lambda value: type(value).__name__
)
def test_what_is_not_text_is_an_error_whatever_way_it_takes_to_text(way: str, value: object) -> None:
    assert message(way, x=value).startswith("train.jsonl:17: the prompt template ")


@pytest.mark.parametrize("way", WAYS)
def test_text_takes_every_way(way: str) -> None:
    assert render(way, x="text")


ARGUMENTS = {
    "attr": "'y'",
    "batch": "2",
    "groupby": "'role'",
    "map": "'string'",
    "selectattr": "'role'",
    "rejectattr": "'role'",
    "slice": "2",
}


@pytest.mark.parametrize("name", sorted({*DEFAULT_FILTERS} - {"tojson", "default", "d"}))
def test_no_filter_of_jinjas_prints_python_source(name: str) -> None:
    filtered = f"x | {name}({ARGUMENTS.get(name, '')})"
    for value in (None, math.nan, MESSAGES[0], MESSAGES, [None], [math.nan], Image(), [Image()]):
        for way in (
            f"{{{{ {filtered} }}}}",
            f"{{{{ ({filtered}) ~ '' }}}}",
            f"{{{{ '%s' % ({filtered}) }}}}",
        ):
            try:
                text = render(way, x=value)
            except TemplateError:
                continue
            assert not any(source in text for source in ("None", "nan", "{'", "object at", "['")), (
                way,
                value,
            )


@pytest.mark.parametrize(
    "way",
    [
        "{{ x.items() }}",
        "{{ x.items() | list | string }}",
        "{{ x.keys() ~ '' }}",
        "{{ x.get ~ '' }}",
        "{{ (x | dictsort)[0] ~ '' }}",
        "{{ x.get('no') ~ '' }}",
        "{{ x.get('no') | trim }}",
        "{{ x | join(' ') }}",
        "{{ ' '.join(x) }}",
        "{{ [x, x] | map(attribute='role') ~ '' }}",
        "{{ [x] | groupby('role') | first | string }}",
        "{% for one in [x] %}{{ loop ~ '' }}{% endfor %}",
        "{{ '%s' % [1, 2] }}",
        "{{ [1, 2] ~ '' }}",
        "{{ none ~ '' }}",
        "{{ none | trim }}",
    ],
)
def test_what_expressions_make_is_held_to_the_same(way: str) -> None:
    assert "which is" in message(way, x=MESSAGES[0])


# What is said


@pytest.mark.parametrize(
    ("way", "value", "expected"),
    [
        (
            "{{ x | trim }}",
            None,
            "gives the field 'x', which is null here, to the filter 'trim'; give it a default: "
            "{{ x | default('...') }}",
        ),
        (
            "{{ 'a' ~ x }}",
            math.nan,
            "gives the field 'x', which is NaN here, to the operator '~'; give it a default: "
            "{{ x | default('...') }}",
        ),
        (
            "{{ x | join(' ') }}",
            MESSAGES,
            "gives the field 'x[0]', which is an object with role, content, to the filter 'join'; name one of "
            "them, or print it as JSON: {{ x[0] | tojson }}",
        ),
        (
            "{{ x }}",
            MESSAGES,
            "prints the field 'x', which is a list of objects with role, content; loop over it: "
            "{% for one in x %}{{ one.role }}: {{ one.content }} {% endfor %}, or print it as JSON: "
            "{{ x | tojson }}",
        ),
        (
            "{{ x | join(' ') }}",
            ["a", None],
            "gives the field 'x[1]', which is null here, to the filter 'join'; leave such elements out: "
            "{{ x | reject('none') | join(' ') }}",
        ),
        (
            "{{ x[0].content.parts[1] | trim }}",
            [{"content": {"parts": ["a", b"b"]}}],
            "gives the field 'x[0].content.parts[1]', which is bytes, to the filter 'trim'; decode it first: "
            "{{ x[0].content.parts[1].decode() }}",
        ),
        ("{{ x }}", Image(), "prints the field 'x', which is an object of type Image; it has no text form"),
        ("{{ x }}", [], "prints the field 'x', which is an empty list; join it: {{ x | join(' ') }}"),
        (
            "{{ fields['x'] }}",
            None,
            "prints the field 'x', which is null here; give it a default: {{ x | default('...') }}",
        ),
        (
            "{% for one in x %}{{ one }}{% endfor %}",
            None,
            "failed: TypeError: 'NoneType' object is not iterable (the field 'x' is null here)",
        ),
    ],
)
def test_the_message_names_row_field_filter_and_the_way_out(way: str, value: object, expected: str) -> None:
    assert message(way, x=value) == f"train.jsonl:17: the prompt template {expected}"


def test_the_ways_out_that_messages_name_work() -> None:
    assert render("{{ x | default('...') }}", x=None) == "..."
    assert render("{% for one in x %}{{ one.role }}: {{ one.content }} {% endfor %}", x=MESSAGES) == (
        "user: hi assistant: ho "
    )
    assert render("{{ x | reject('none') | join(' ') }}", x=["a", None, math.nan, "b"]) == "a b"
    assert render("{{ x.decode() }}", x=b"hi") == "hi"
    assert render("{{ x | tojson }}", x=MESSAGES) == (
        '[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]'
    )


def test_several_null_fields_are_all_named() -> None:
    assert "one of the fields 'a', 'b', which is null here" in message("{{ a ~ b }}", a=None, b=None)


def test_a_field_whose_name_is_no_word_is_named_as_a_template_writes_it() -> None:
    assert message("{{ fields['Full text'] }}", **{"Full text": None}).endswith(
        """{{ fields['Full text'] | default('...') }}"""
    )


# What still works


@pytest.mark.parametrize("value", [None, math.nan])
@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ x | default('d') }}", "d"),
        ("{{ x | default('d') | trim | upper }}", "D"),
        ("{{ x | d('d', true) }}", "d"),
        ("{{ x or 'd' }}", "d"),
        ("{% if x %}yes{% else %}no{% endif %}", "no"),
        ("{{ 'null' if x is none else x }}", "null"),
        ("{{ 'null' if not x else x }}", "null"),
        ("{% if x is defined %}field{% endif %}", "field"),
        ("{% if x is string %}text{% else %}other{% endif %}", "other"),
        ("{{ x | default([]) | length }}", "0"),
        ("{{ [x, 'a'] | select | join }}", "a"),
        ("{{ {'k': 'v', 'x': x}.k }}", "v"),
        ("{% set z = x %}{{ z or 'd' }}", "d"),
    ],
)
def test_null_and_nan_can_be_tested_and_replaced(value: object, template: str, expected: str) -> None:
    assert render(template, x=value) == expected


def test_nan_that_is_nested_can_be_tested_and_replaced() -> None:
    assert (
        render("{{ x.score | default('none') }} {{ x.score is none }}", x={"score": math.nan}) == "none True"
    )


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (
            "{{ x | length }} {{ x[1].role }} {{ x | map(attribute='content') | join('+') }}",
            "2 assistant hi+ho",
        ),
        (
            "{{ (x | first).role }} {{ x | last is mapping }} {{ x | selectattr('role') | list | count }}",
            "user True 2",
        ),
        ("{% for role, group in x | groupby('role') %}{{ role }} {% endfor %}", "assistant user "),
        ("{{ x | join(', ', attribute='role') }}", "user, assistant"),
        ("{{ '{m[role]}'.format(m=x[0]) }} {{ '%(role)s' % x[0] }}", "user user"),
        ("{% for key, value in x[0].items() %}{{ key }}={{ value }};{% endfor %}", "role=user;content=hi;"),
        ("{{ x[0] | dictsort | map('last') | join(' ') }}", "hi user"),
        ("{{ (x + x) | length }} {{ {'role': 'user'} == x[0] }}", "4 False"),
        ("{{ ', '.join(x | map(attribute='role')) }}", "user, assistant"),
    ],
)
def test_objects_and_lists_can_be_taken_apart(template: str, expected: str) -> None:
    assert render(template, x=MESSAGES) == expected


def test_json_is_written_for_people_and_keeps_the_order_of_keys() -> None:
    value = {"z": "<b> & 'ü'", "a": [1, None, True], "day": datetime.date(2026, 1, 31)}
    assert render("{{ x | tojson }}", x=value) == (
        """{"z": "<b> & 'ü'", "a": [1, null, true], "day": "2026-01-31"}"""
    )
    assert render("{{ x | tojson(indent=1) }}", x={"a": 1}) == '{\n "a": 1\n}'


@pytest.mark.parametrize("value", [{"a": math.nan}, {"a": b"b"}, Image()])
def test_json_of_what_has_none_is_an_error(value: object) -> None:
    assert "the prompt template " in message("{{ x | tojson }}", x=value)


def test_a_missing_field_is_named_by_every_way_too() -> None:
    for way in (
        "{{ x.no | trim }}",
        "{{ x.no ~ '' }}",
        "{{ x.no | tojson }}",
        "{{ '%s' % x.no }}",
        "{{ [x.no] | join }}",
    ):
        assert "needs the field 'no'; this row has role, content" in message(way, x=MESSAGES[0])


def test_numbers_booleans_and_dates_print_as_before() -> None:
    day = datetime.datetime(2026, 1, 31, 12, 0)
    assert (
        render(
            "{{ a ~ b }} {{ a + 1 }} {{ '%.2f' % c }} {{ b | string }} {{ [a, b] | join(',') }} {{ d }} {{ e }}",
            a=1,
            b=True,
            c=0.5,
            d=day,
            e=Decimal("1.50"),
        )
        == "1True 2 0.50 True 1,True 2026-01-31 12:00:00 1.50"
    )


def test_the_sandbox_still_holds_for_formats() -> None:
    assert "SecurityError" in message("{{ '{x.__class__}'.format(x=x) }}", x="a")


def test_parquets_nan_is_an_error_where_it_is_printed_and_false_where_it_is_tested(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    file = tmp_path / "rows.parquet"
    columns = {"instruction": ["I", "I"], "input": [math.nan, None], "output": ["O", "O"]}
    parquet.write_table(pyarrow.table(columns), file)
    rows = read(str(file)).kept
    for row in rows:
        assert NAMED_TEMPLATES["alpaca"].render(row).segments[0].text == "I"
    trimming = PromptTemplate("{{ input | trim }}", "{{ output }}")
    rejected = render_all(trimming, rows, on_error="skip").rejected
    assert ["NaN" in row.reason for row in rejected] == [True, False]
    assert all("the field 'input'" in row.reason and "the filter 'trim'" in row.reason for row in rejected)


def test_promptsources_templates_are_held_to_the_same() -> None:
    template = from_promptsource("{{ q | trim }} ||| {{ answer_choices[a] }}", "No ||| {{ w }}")
    with pytest.raises(TemplateError, match="the field 'q', which is null here, to the filter 'trim'"):
        template.render(Record({"q": None, "a": 0, "w": "Yes"}, "t", 1))
    with pytest.raises(TemplateError, match="the field 'w', which is null here"):
        template.render(Record({"q": "Q", "a": 1, "w": None}, "t", 1))


@pytest.mark.parametrize("value", [math.nan, MESSAGES, MESSAGES[0]])
def test_a_group_is_text_too(value: object) -> None:
    template = PromptTemplate("{{ x }}", "{{ y }}", group_by="paper")
    with pytest.raises(
        TemplateError, match=r"train\.jsonl:17: group_by needs text in the field 'paper', which is"
    ):
        template.render(Record({"x": "a", "y": "b", "paper": value}, "train.jsonl", 17))
    with pytest.raises(
        DataError, match=r"train\.jsonl:17: group_by needs text in the field 'paper', which is"
    ):
        record_key(Record({"paper": value}, "train.jsonl", 17), "paper")
