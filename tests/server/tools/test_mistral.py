import re

import pytest
from tests.chat_templates import tokenizer_of
from tests.engine.constraints.tokens import accepts
from tests.server.tools.reading import check, read
from tests.server.tools.test_hermes import TOOLS

from manytune.engine.constraints.grammar import Grammar
from manytune.engine.constraints.spelling import special_tokens
from manytune.server.tools.mistral import Mistral

SPECIAL = special_tokens(tokenizer_of(None))  # the mark is one of them
ONE = ("add", '{"a": "]}"}')
LIST = '[TOOL_CALLS] [{"name": "add", "arguments": {"a": "]}"}, "id": "abcdefghi"}]'


@pytest.mark.parametrize(
    ("text", "expected", "calls"),
    [
        (" Hello [there]", " Hello [there]", []),
        (LIST, "", [ONE]),
        (
            '[TOOL_CALLS][{"name": "clock", "arguments": {}}, {"name": "add", "arguments": {"a": "]}"}}]',
            "",
            [("clock", "{}"), ONE],
        ),
        ('Well. [TOOL_CALLS]add[ARGS]{"a": "]}"}', "Well.", [ONE]),
        ('[TOOL_CALLS]add{"a": "]}"}[TOOL_CALLS]clock[ARGS]{}', "", [ONE, ("clock", "{}")]),
        ('[TOOL_CALLS]add[CALL_ID]abcdefghi[ARGS]{"a": "]}"}', "", [ONE]),
        ("[TOOL_CALLS]add[ARGS]", "[TOOL_CALLS]add[ARGS]", []),
        ("[TOOL_CALLS] what?\n", "[TOOL_CALLS] what?\n", []),
        ('[TOOL_CALLS]add[ARGS]{"a": "]', "", [("add", '{"a": "]')]),
        ("[TOOL", "[TOOL", []),
        ('[TOOL_CALLS]add\n{"a": "]}"}', "", [ONE]),
        ('Hm, [TOOL_CALLS]"x" [TOOL_CALLS]clock[ARGS]{}', 'Hm, [TOOL_CALLS]"x"', [("clock", "{}")]),
        (
            '[TOOL_CALLS]clock{}[TOOL_CALLS][{"name": "add", "arguments": {"a": "]}"}}]',
            "",
            [("clock", "{}"), ONE],
        ),
        ('Hm, [TOOL_CALLS]{"b": 1}', 'Hm, [TOOL_CALLS]{"b": 1}', []),
    ],
)
def test_an_answer_is_taken_apart_however_it_comes(text: str, expected: str, calls: list) -> None:
    check(Mistral(named=False), text, expected, *calls)


def test_a_call_has_the_id_of_nine_letters_that_its_templates_want_or_the_models_own() -> None:
    assert re.fullmatch("[a-z0-9]{9}", read(Mistral(named=False), [LIST]).ids[0])
    text = '[TOOL_CALLS]add[CALL_ID]AbCdEfGh1[ARGS]{"a": 1}'
    assert read(Mistral(named=True), [text]).ids == ("AbCdEfGh1",)


@pytest.mark.parametrize(
    ("named", "call"),
    [
        (False, '[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1}}, {"name": "clock", "arguments": {}}]'),
        (False, '[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1}, "id": "abcdefghi"}]'),
        (True, '[TOOL_CALLS]add[ARGS]{"a": 1}[TOOL_CALLS]clock[ARGS]{}'),
    ],
)
def test_its_grammars_are_what_its_reader_reads(named: bool, call: str) -> None:
    rules = Mistral(named=named).rules(TOOLS, SPECIAL, several=True, strict=True)
    required, auto, none = (Grammar(start, rules.rules) for start in (rules.calls, rules.answer, rules.text))
    assert accepts(required, call) and accepts(auto, call) and not accepts(none, call)
    assert accepts(auto, f"Well. {call}") and accepts(none, "Hello [there]")
    assert not accepts(auto, call.replace('"a"', '"b"'))
    assert read(Mistral(named=named), [call]).calls[0] == ("add", '{"a": 1}')
    assert (
        "~/" in Mistral(named=named).rules(TOOLS, {}, several=True, strict=True).rules
    )  # where it is plain text
