import pytest
from tests.engine.constraints.tokens import accepts
from tests.server.tools.reading import check
from tests.server.tools.test_hermes import TOOLS

from manytune.engine.constraints.grammar import Grammar
from manytune.server.tools.llama3 import Llama3

CALL = '{"name": "add", "parameters": {"a": 1}}'


@pytest.mark.parametrize(
    ("text", "expected", "calls"),
    [
        ("Hello {there}", "Hello {there}", []),
        (" \n Hi", " \n Hi", []),
        ("", "", []),
        (CALL, "", [("add", '{"a": 1}')]),
        (f"<|python_tag|>{CALL}", "", [("add", '{"a": 1}')]),
        (f"{CALL}; {CALL}", "", [("add", '{"a": 1}')] * 2),
        ('{"type": "function", "name": "clock", "parameters": {}}', "", [("clock", "{}")]),
        ('{"type": "function", "function": {"name": "clock", "arguments": {}}}', "", [("clock", "{}")]),
        ('{"name": "Ada", "age": 36}', '{"name": "Ada", "age": 36}', []),  # JSON that is no call
        ('{"name": "other", "parameters": {}}', '{"name": "other", "parameters": {}}', []),
        ('{"city": "Oslo"}', '{"city": "Oslo"}', []),
        ("<|python_tag|>print(1)", "<|python_tag|>print(1)", []),
        ("<|python", "<|python", []),
        ('{"name": "add", "parameters": {"a": 1', "", [("add", '{"a": 1')]),
        ('{"name": "ad', '{"name": "ad', []),
        (f"{CALL} Done.", "Done.", [("add", '{"a": 1}')]),
        (f"{CALL};<|python_tag|>{CALL}", "", [("add", '{"a": 1}')] * 2),
    ],
)
def test_an_answer_is_taken_apart_however_it_comes(text: str, expected: str, calls: list) -> None:
    check(Llama3(), text, expected, *calls)


def test_its_grammar_has_one_call_or_text_that_is_no_object() -> None:
    rules = Llama3().rules(TOOLS, {}, several=True, strict=True)
    required, auto, none = (Grammar(start, rules.rules) for start in (rules.calls, rules.answer, rules.text))
    assert accepts(required, CALL) and accepts(auto, CALL) and not accepts(none, CALL)
    assert (
        accepts(auto, "Hello {there}") and accepts(none, "Hello {there}") and not accepts(required, "Hello")
    )
    assert not accepts(auto, '{"name": "add", "parameters": {"a": "x"}}')
