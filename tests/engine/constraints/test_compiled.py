"""Masks are exactly the tokens that a slow check allows, and no grammar takes long, whatever is in it."""

import json
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine.constraints.tokens import SIZE, allowed_after, compiled, drawn, ones, texts, vocabulary
from tests.reference.allowed_tokens import by_answers, by_pattern

from manytune.engine.constraints.compiled import GrammarCache
from manytune.engine.constraints.grammar import Grammar, lark_grammar, regex_grammar, schema_grammar
from manytune.errors import GrammarError

PATTERNS = [
    r"[0-9]{4}-[0-9]{2}",
    r"(the|them|then )+x?",
    r"[^a-f]{2,5}",
    r"(a|ab)(c|bcd)(d*)",
    r"-?(0|[1-9][0-9]*)(\.[0-9]+)?",
    r"(It is|what) [a-z]+\?",
]
ANSWERS = ["the", "them", "the quick", '"a"', "ab", "é", "", "a\nb"]


@pytest.mark.parametrize("pattern", PATTERNS)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_masks_of_a_pattern_are_what_trying_every_token_gives(pattern: str, seed: int) -> None:
    draw, text = random.Random(seed), b""
    matcher = compiled(regex_grammar(pattern)).start()
    tokens = {token: content for token, content in texts().items() if content.isascii()}
    for _ in range(12):
        allowed = ones(matcher.allowed())
        expected = by_pattern(pattern, text, tokens)
        assert allowed & tokens.keys() == expected
        if not allowed:
            assert matcher.must_end
            break
        if not expected:
            break
        token = draw.choice(sorted(expected))
        matcher.accept(token)
        text += tokens[token]


@pytest.mark.parametrize(
    ("grammar", "answers"),
    [
        (Grammar(" | ".join(json.dumps(one) for one in ANSWERS)), ANSWERS),
        (lark_grammar('start: ("a" | "ab") tail?\ntail: "c" | "bc"\n'), ["a", "ab", "ac", "abc", "abbc"]),
        (
            schema_grammar({"enum": ["a", "the", 1, 12, True, None]}),
            ['"a"', '"the"', "1", "12", "true", "null"],
        ),
        (schema_grammar({"type": "boolean"}), ["true", "false"]),
    ],
)
def test_masks_of_finitely_many_answers_are_what_trying_every_token_gives(
    grammar: Grammar, answers: list[str]
) -> None:
    for answer in answers:
        for length in range(len(answer) + 1):
            begun = answer[:length]
            expected = by_answers(answers, begun.encode(), texts())
            assert allowed_after(grammar, begun) == expected | ({1} if begun in answers else set())


def test_no_special_token_and_no_row_without_a_token_is_ever_allowed() -> None:
    matcher = compiled(regex_grammar(r"(?s:.)*")).start()
    allowed = ones(matcher.allowed())
    assert allowed <= texts().keys() and len(allowed) > 200
    assert max(texts()) < SIZE - 1


def test_a_matcher_says_when_an_answer_may_and_when_it_must_end() -> None:
    matcher = compiled(regex_grammar("ab?")).start()
    states = [(matcher.may_end, matcher.must_end)]
    for letter in (b"a", b"b"):
        matcher.accept(next(token for token, content in texts().items() if content == letter))
        states.append((matcher.may_end, matcher.must_end))
    assert states == [(False, False), (True, False), (True, True)]
    assert not matcher.allowed().any()


def test_matchers_of_one_grammar_do_not_share_an_answer() -> None:
    grammar = compiled(regex_grammar("[0-9]{3}"))
    first, second = grammar.start(), grammar.start()
    for _ in range(3):
        first.accept(next(token for token, content in texts().items() if content == b"7"))
    assert first.must_end and not second.may_end
    assert second.allowed().any()


HOSTILE = {
    "chains of rules": lambda: lark_grammar(
        "start: r0\n" + "".join(f'r{i}: "a" r{i + 1} | "b"\n' for i in range(9000)) + 'r9000: "c"\n'
    ),
    "nested repetitions": lambda: regex_grammar("(((a{50}){50}){50}){50}"),
    "nested terminals": lambda: lark_grammar("start: A\nA: B{50}\nB: C{50}\nC: D{50}\nD: E{50}\nE: /a/\n"),
    "a long repetition": lambda: regex_grammar("a{100000}"),
    "a repetition in a schema": lambda: schema_grammar({"type": "string", "pattern": "((a{99}){99}){99}"}),
    "parentheses": lambda: lark_grammar("start: " + "(" * 30000 + '"a"'),
    "groups": lambda: regex_grammar("(" * 15000 + "a" + ")" * 15000),
    "ambiguous": lambda: lark_grammar("start: " + "|".join(['"a" "b"'] * 3000)),
    "many values": lambda: schema_grammar({"enum": [f"v{i}" for i in range(30000)]}),
    "many properties": lambda: schema_grammar(
        {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(6000)}}
    ),
    "combinations": lambda: schema_grammar(
        {"allOf": [{"anyOf": [{"properties": {f"a{i}": {"const": j}}} for j in range(3)]} for i in range(16)]}
    ),
    "depth": lambda: schema_grammar(nested(5000)),
    "itself": lambda: schema_grammar({"$ref": "#"}),
    "a circle": lambda: schema_grammar(
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}
    ),
    "endless": lambda: lark_grammar("start: x\nx: x{1,100}\n"),
}


def nested(depth: int) -> dict:
    schema: dict = {"type": "object"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"x": schema}}
    return schema


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_grammar_is_refused_in_one_sentence_and_before_long(name: str) -> None:
    vocabulary()
    begun = time.thread_time()
    try:
        answer = drawn(HOSTILE[name](), random.Random(0), longest=100)
    except GrammarError as error:
        assert "\n" not in str(error) and 10 < len(str(error)) < 400
        assert str(error).endswith(".")
    else:
        assert answer
        assert name in ("combinations", "nested terminals")  # their limits lie within the matcher
    assert (
        time.thread_time() - begun < 20
    )  # of a core, on a slow machine; unlimited ones take minutes or gigabytes


def test_large_but_ordinary_schemas_are_compiled() -> None:
    properties = {f"p{i}": {"type": "string", "maxLength": 50} for i in range(200)}
    for schema in (
        {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        },
        {"enum": [f"value {i}" for i in range(2000)]},
        {"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": 1000},
        {"type": "string", "minLength": 10, "maxLength": 100_000},
    ):
        assert compiled(schema_grammar(schema)).start().allowed().any()


def test_what_no_token_can_write_is_refused() -> None:
    with pytest.raises(GrammarError, match="no text that this model's tokens can write fits it"):
        compiled(Grammar("<[1]>"))
    with pytest.raises(GrammarError, match="minimum"):
        compiled(schema_grammar({"type": "integer", "minimum": 5, "maximum": 2}))


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        (lambda: lark_grammar("start: foo"), 'unknown name: "foo".'),
        (lambda: lark_grammar('a: "b"'), "no start rule found."),
        (lambda: regex_grammar("(a"), "unclosed group"),
        (lambda: regex_grammar("(?=a)b"), "look-around"),
        (lambda: schema_grammar({"type": "foo"}), "Invalid type: foo."),
        (lambda: schema_grammar({"type": "string", "format": "foo"}), "Unknown format: foo."),
        (lambda: schema_grammar({"oneOf": [{"type": "string"}, {"minLength": 3}]}), "use anyOf."),
        (lambda: schema_grammar({"$ref": "#/$defs/x"}), "'/$defs/x' does not exist."),
    ],
)
def test_an_invalid_grammar_says_what_is_wrong(grammar, message: str) -> None:
    with pytest.raises(GrammarError) as caught:
        compiled(grammar())
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_cache_compiles_a_grammar_once_and_forgets_the_oldest() -> None:
    cache = GrammarCache(vocabulary())
    first = cache.compile(regex_grammar("a+"))
    assert cache.compile(regex_grammar("a+")) is first
    for number in range(200):
        cache.compile(regex_grammar(f"a{number}"))
    assert cache.find(regex_grammar("a+")) is None
    assert cache.find(regex_grammar("a199")) is not None
