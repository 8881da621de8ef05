"""A keyword is honoured or refused by its name; none is ignored."""

import json
import os
import random
import sys

import jsonschema_rs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.engine.constraints.tokens import accepts, compiled, drawn

from manytune.engine.constraints.grammar import schema_grammar
from manytune.engine.constraints.json_schema import check_schema
from manytune.errors import GrammarError

# All keywords of draft 2020-12 that restrict values, from its vocabularies (core, applicator, validation, unevaluated,
# format), and those of older drafts.
STANDARD = [
    "$ref",
    "$dynamicRef",
    "allOf",
    "anyOf",
    "oneOf",
    "not",
    "if",
    "then",
    "else",
    "dependentSchemas",
    "prefixItems",
    "items",
    "contains",
    "properties",
    "patternProperties",
    "additionalProperties",
    "propertyNames",
    "unevaluatedItems",
    "unevaluatedProperties",
    "type",
    "enum",
    "const",
    "multipleOf",
    "maximum",
    "exclusiveMaximum",
    "minimum",
    "exclusiveMinimum",
    "maxLength",
    "minLength",
    "pattern",
    "maxItems",
    "minItems",
    "uniqueItems",
    "maxContains",
    "minContains",
    "maxProperties",
    "minProperties",
    "required",
    "dependentRequired",
    "format",
    "additionalItems",
    "dependencies",
]
#: Answers that are right and wrong by a keyword alone.
SUPPORTED = {
    "$ref": ({"$ref": "#/$defs/n", "$defs": {"n": {"type": "null"}}}, "null", "1"),
    "allOf": ({"allOf": [{"type": "integer"}, {"minimum": 5}]}, "5", "4"),
    "anyOf": ({"anyOf": [{"type": "null"}, {"type": "boolean"}]}, "true", "1"),
    "oneOf": ({"oneOf": [{"type": "null"}, {"type": "boolean"}]}, "true", "1"),
    "prefixItems": ({"type": "array", "prefixItems": [{"const": 1}], "items": False}, "[1]", "[2]"),
    "items": ({"type": "array", "items": {"const": 1}}, "[1, 1]", "[1, 2]"),
    "additionalItems": (
        {"type": "array", "items": [{"const": 1}], "additionalItems": False},
        "[1]",
        "[1, 1]",
    ),
    "properties": ({"type": "object", "properties": {"a": {"const": 1}}}, '{"a": 1}', '{"a": 2}'),
    "patternProperties": (
        {"type": "object", "patternProperties": {"^a": {"const": 1}}, "additionalProperties": False},
        '{"ab": 1}',
        '{"b": 1}',
    ),
    "additionalProperties": ({"type": "object", "additionalProperties": False}, "{}", '{"a": 1}'),
    "type": ({"type": "integer"}, "1", '"a"'),
    "enum": ({"enum": ["a", 1]}, '"a"', '"b"'),
    "const": ({"const": {"a": [1]}}, '{"a": [1]}', '{"a": [2]}'),
    "multipleOf": ({"type": "integer", "multipleOf": 7}, "14", "15"),
    "maximum": ({"type": "integer", "maximum": 7}, "7", "8"),
    "exclusiveMaximum": ({"type": "integer", "exclusiveMaximum": 7}, "6", "7"),
    "minimum": ({"type": "integer", "minimum": 7}, "7", "6"),
    "exclusiveMinimum": ({"type": "integer", "exclusiveMinimum": 7}, "8", "7"),
    "maxLength": ({"type": "string", "maxLength": 2}, '"ab"', '"abc"'),
    "minLength": ({"type": "string", "minLength": 2}, '"ab"', '"a"'),
    "pattern": ({"type": "string", "pattern": "^a+$"}, '"aa"', '"ab"'),
    "maxItems": ({"type": "array", "items": {"const": 1}, "maxItems": 1}, "[1]", "[1, 1]"),
    "minItems": ({"type": "array", "items": {"const": 1}, "minItems": 1}, "[1]", "[]"),
    "maxProperties": ({"type": "object", "maxProperties": 1}, '{"a": 1}', '{"a": 1, "b": 1}'),
    "minProperties": ({"type": "object", "minProperties": 1}, '{"a": 1}', "{}"),
    "required": ({"type": "object", "required": ["a"]}, '{"a": 1}', "{}"),
    "format": ({"type": "string", "format": "date"}, '"2026-11-29"', '"today"'),
}
#: With a number of cases others are drawn each time; without, the same few.
ASKED = "MANYTUNE_CASES" in os.environ
CASES = int(os.environ.get("MANYTUNE_CASES", "60"))


@pytest.mark.parametrize("keyword", STANDARD)
def test_a_keyword_restricts_answers_or_is_refused_by_name(keyword: str) -> None:
    if keyword not in SUPPORTED:
        with pytest.raises(GrammarError) as caught:
            check_schema({"type": "object", "properties": {"a": {keyword: {}}}}, "schema")
        assert (
            str(caught.value)
            == f"schema.properties.a: the keyword {keyword!r} isn't supported; leave it out."
        )
        return
    schema, right, wrong = SUPPORTED[keyword]
    grammar = schema_grammar(schema)
    assert accepts(grammar, right) and not accepts(grammar, wrong)


def test_annotations_restrict_nothing() -> None:
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "https://example.com/a",
        "title": "A",
        "description": "a",
        "default": 1,
        "examples": [1],
        "deprecated": True,
        "type": "object",
        "properties": {"a": {"type": "integer", "title": "A", "readOnly": True}},
    }
    assert accepts(schema_grammar(schema), '{"a": 12}')


def test_the_alternatives_of_a_pydantic_union_may_be_told_apart_by_a_discriminator() -> None:
    kinds = [
        {"type": "object", "properties": {"kind": {"const": kind}}, "required": ["kind"]}
        for kind in ("cat", "dog")
    ]
    schema = {"oneOf": kinds, "discriminator": {"propertyName": "kind"}}
    assert accepts(schema_grammar(schema), '{"kind": "dog"}')


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("text", "schema: expected a JSON schema, which is an object, found 'text'."),
        ({"properties": [1]}, "schema.properties: expected an object of schemas by name, found a list."),
        ({"anyOf": {}}, "schema.anyOf: expected a list of schemas, found an object."),
        ({"items": 3}, "schema.items: expected a JSON schema, which is an object, found 3."),
        ({"multipleOf": 0}, "schema.multipleOf: expected more than 0, found 0."),
        ({"required": None}, "schema.required: expected a list of names, found null."),
        ({"maxLength": -1}, "schema.maxLength: expected an integer from 0 to 2,147,483,647, found -1."),
        (
            {"$ref": "http://x"},
            "schema.$ref: expected a place in the same schema such as '#/$defs/NAME', found",
        ),
        (
            {"x-guidance": {"lenient": True}},
            "schema: the keyword 'x-guidance' isn't supported; leave it out.",
        ),
        (
            {"items": {"items": {"not": {}}}},
            "schema.items.items: the keyword 'not' isn't supported; leave it out.",
        ),
    ],
)
def test_a_schema_that_is_none_says_where(schema, message: str) -> None:
    with pytest.raises(GrammarError) as caught:
        check_schema(schema, "schema")
    assert str(caught.value).startswith(message)


def test_white_space_is_that_of_a_line_or_of_an_indented_text() -> None:
    grammar = schema_grammar({"type": "object"})
    for text in (
        '{"a":1,"b":[1,2]}',
        '{"a": 1, "b": [1, 2]}',
        '{\n  "a": 1,\n  "b": [\n    1,\n    2\n  ]\n}',
    ):
        assert accepts(grammar, text)
    for text in (' {"a": 1}', '{"a": 1}\n', '{"a":     1}', '{"a":\n\n1}'):
        assert not accepts(grammar, text)


# -- schemas at random

SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-99, 99), st.text('abé"\\ ', max_size=4))
NAMES = st.text("abcé_", min_size=1, max_size=3)


def strings() -> st.SearchStrategy[dict]:
    lengths = st.fixed_dictionaries({"type": st.just("string")}, optional={"maxLength": st.integers(2, 9)})
    patterns = st.sampled_from(["^a+b?$", "^[0-9]{3}$", "x|y", "^(the|a) [a-z]{2,4}$"])
    formats = st.sampled_from(["date", "time", "date-time", "uuid", "ipv4", "email", "hostname", "unknown"])
    return st.one_of(
        lengths,
        patterns.map(lambda pattern: {"type": "string", "pattern": pattern}),
        formats.map(lambda format: {"type": "string", "format": format}),
        st.integers(0, 4).map(lambda least: {"type": "string", "minLength": least, "maxLength": 6}),
    )


def numbers() -> st.SearchStrategy[dict]:
    options = {
        "minimum": st.integers(-50, 50),
        "maximum": st.integers(-20, 90),
        "multipleOf": st.sampled_from([2, 7]),
    }
    return st.fixed_dictionaries({"type": st.sampled_from(["integer", "number"])}, optional=options)


def structures(inner: st.SearchStrategy[dict]) -> st.SearchStrategy[dict]:
    def with_required(draw: st.DrawFn) -> dict:
        properties = draw(st.dictionaries(NAMES, inner, max_size=3))
        schema = {"type": "object", "properties": properties, "additionalProperties": draw(st.booleans())}
        names = sorted(properties)
        return (
            {**schema, "required": draw(st.lists(st.sampled_from(names), unique=True))} if names else schema
        )

    return st.one_of(
        st.composite(with_required)(),
        st.fixed_dictionaries(
            {"type": st.just("array"), "items": inner, "maxItems": st.integers(0, 3)},
            optional={"minItems": st.integers(0, 2)},
        ),
        st.lists(inner, min_size=1, max_size=3).map(lambda found: {"anyOf": found}),
        st.lists(inner, min_size=1, max_size=2).map(lambda found: {"oneOf": found}),
        st.lists(inner, min_size=1, max_size=2).map(lambda found: {"allOf": found}),
        inner.map(
            lambda found: {"$ref": "#/$defs/a", "$defs": {"a": found}} if "$defs" not in found else found
        ),
        st.tuples(inner, st.sampled_from(STANDARD), SCALARS).map(
            lambda found: {**found[0], found[1]: found[2]}
        ),
    )


SCHEMAS = st.recursive(
    st.one_of(
        strings(),
        numbers(),
        st.lists(SCALARS, min_size=1, max_size=4).map(lambda found: {"enum": found}),
        SCALARS.map(lambda found: {"const": found}),
        st.sampled_from(
            [{"type": "null"}, {"type": "boolean"}, {}, {"type": ["string", "null"]}, {"type": "strange"}]
        ),
    ),
    structures,
    max_leaves=6,
)


def number(text: str) -> float:
    """JSON's numbers have no largest one, and Python's reading of 2e972 is no number to the validator."""
    return max(-sys.float_info.max, min(sys.float_info.max, float(text)))


def check_any_schema(schema: dict, seed: int) -> str:
    """What became of a schema: `"refused"`, `"cut"` or `"valid"`."""
    try:
        grammar = schema_grammar(schema)
        compiled(grammar)
    except GrammarError as error:
        assert str(error).endswith(".") and "\n" not in str(error), error
        return "refused"
    answer, is_complete = drawn(grammar, random.Random(seed))
    if not is_complete:
        return "cut"
    validator = jsonschema_rs.Draft202012Validator(schema, validate_formats=True)
    assert validator.is_valid(json.loads(answer, parse_float=number)), (schema, answer)
    return "valid"


@given(schema=SCHEMAS, seed=st.integers(0, 10**6))
@settings(max_examples=CASES, deadline=None, derandomize=not ASKED, suppress_health_check=list(HealthCheck))
def test_any_schema_gives_valid_answers_or_a_clear_refusal(schema: dict, seed: int) -> None:
    check_any_schema(schema, seed)


def test_most_schemas_are_answered_and_most_answers_end() -> None:
    """The property above would hold for a compiler that refuses everything."""
    found: list[str] = []

    @given(schema=SCHEMAS, seed=st.integers(0, 10**6))
    @settings(
        max_examples=CASES,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    def run(schema: dict, seed: int) -> None:
        found.append(check_any_schema(schema, seed))

    run()
    assert found.count("valid") > len(found) / 3 and found.count("cut") < len(found) / 5
