import pytest
from tests.engine.constraints.tokens import accepts
from tests.server.tools.reading import check
from tests.server.tools.test_hermes import TOOLS

from manytune.engine.constraints.grammar import Grammar
from manytune.server.tools.plain import Plain

CALL = '{"name": "add", "arguments": {"a": [1, "]"]}}'


@pytest.mark.parametrize(
    ("text", "expected", "calls"),
    [
        ("[1, 2]", "[1, 2]", []),
        (CALL, "", [("add", '{"a": [1, "]"]}')]),
        (f"[{CALL}, {CALL}]", "", [("add", '{"a": [1, "]"]}')] * 2),
        (f"{CALL}\n{CALL}", "", [("add", '{"a": [1, "]"]}')] * 2),
        (f"[\n {CALL}\n]\n", "", [("add", '{"a": [1, "]"]}')]),
        (f'[{CALL}, {{"na', "", [("add", '{"a": [1, "]"]}')]),
        ('[{"name": "Ada"}]', '[{"name": "Ada"}]', []),
        ("Sure: " + CALL, "Sure: " + CALL, []),
    ],
)
def test_an_answer_is_taken_apart_however_it_comes(text: str, expected: str, calls: list) -> None:
    check(Plain(), text, expected, *calls)


def test_its_grammar_is_what_its_reader_reads() -> None:
    rules = Plain().rules(TOOLS, {}, several=True, strict=True)
    call = '{"name": "add", "arguments": {"a": 1}}'
    auto = Grammar(rules.answer, rules.rules)
    assert accepts(auto, f"{call}\n{call}") and accepts(auto, "Hello") and not accepts(auto, '{"a": 1}')
