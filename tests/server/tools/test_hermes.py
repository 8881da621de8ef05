import pytest
from tests.engine.constraints.tokens import accepts
from tests.server.tools.reading import check, read

from manytune.engine.constraints.grammar import Grammar
from manytune.server.tools.calls import Tool
from manytune.server.tools.hermes import Hermes

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "}</tool_call>"}}\n</tool_call>'
ARGUMENTS = '{"a": 1, "b": "}</tool_call>"}'
TOOLS = [
    Tool(
        "add",
        {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
        False,
        "tools.0",
    ),
    Tool("clock", {"type": "object", "additionalProperties": False}, False, "tools.1"),
]


@pytest.mark.parametrize(
    ("text", "expected", "calls"),
    [
        ("No call here.", "No call here.", []),
        ("  A < b\n\n", "  A < b\n\n", []),
        ("", "", []),
        ("Hm, \n<tool_call>what?", "Hm, \n<tool_call>what?", []),
        (CALL, "", [("add", ARGUMENTS)]),
        (f"I'll add.\n{CALL}", "I'll add.", [("add", ARGUMENTS)]),
        (f"{CALL}\n{CALL}\n", "", [("add", ARGUMENTS)] * 2),
        (f"{CALL} Done.", " Done.", [("add", ARGUMENTS)]),
        ('<tool_call>{"name": "clock", "arguments": {}}</tool_call>', "", [("clock", "{}")]),
        ('<tool_call>\n{"name": "clock", "arguments": {}}', "", [("clock", "{}")]),  # the tag isn't closed
        ('<tool_call>\n{"arguments": {"a": 1}, "name": "add"}\n</tool_call>', "", [("add", '{"a": 1}')]),
        (
            '<tool_call>\n{"name": "add", "arguments": "{\\"a\\": 1}"}\n</tool_call>',
            "",
            [("add", '{"a": 1}')],
        ),
        ('<tool_call>\n{"name": "clock"}\n</tool_call>', "", [("clock", "{}")]),
        ('<tool_call>\n{"name": "add", "arguments": {"a"', "", [("add", '{"a"')]),  # cut off at the limit
        (f'{CALL}\n<tool_call>\n{{"na', "", [("add", ARGUMENTS)]),
        ("<tool_call>\nnonsense\n</tool_call>", "<tool_call>\nnonsense\n</tool_call>", []),
        ('<tool_call>\n{"a": 1}\n</tool_call>', '<tool_call>\n{"a": 1}\n</tool_call>', []),
        ("<tool_call", "<tool_call", []),
        (f"<tool_call>oh, {CALL}", "<tool_call>oh,", [("add", ARGUMENTS)]),
    ],
)
def test_an_answer_is_taken_apart_however_it_comes(text: str, expected: str, calls: list) -> None:
    check(Hermes(), text, expected, *calls)


def test_arguments_are_given_out_as_they_come() -> None:
    reader = Hermes().reader(["add"])
    assert reader.push('<tool_call>\n{"name": "add", "arguments": ').calls == ()
    (first,) = reader.push('{"a": ').calls
    assert (first.name, first.arguments) == ("add", '{"a": ')
    assert [one.arguments for one in reader.push("12").calls] == ["12"]
    assert [one.arguments for one in reader.push("}}\n</tool_call>").calls] == ["}"]


def test_text_is_held_back_only_while_it_may_be_a_call() -> None:
    reader = Hermes().reader(["add"])
    assert reader.push("a <tool").text == "a"
    assert reader.push("box> b").text == " <toolbox> b"


@pytest.mark.parametrize("special", [{}, {"<tool_call>": 12, "</tool_call>": 13}])
def test_its_grammar_is_what_its_reader_reads(special: dict) -> None:
    rules = Hermes().rules(TOOLS, special, several=True, strict=True)
    if special:
        assert "<[12]>" in rules.calls and "<[13]>" in rules.rules
        return
    required, auto, none = (Grammar(start, rules.rules) for start in (rules.calls, rules.answer, rules.text))
    one = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    other = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
    for text in (one, f"{one}\n{other}"):
        assert accepts(required, text) and accepts(auto, text) and not accepts(none, text)
        assert accepts(auto, f"Wait.\n{text}")
        assert read(Hermes(), [text]).calls
    for text in ("Hello.", "<tool_cal", ""):
        assert not accepts(required, text) and accepts(auto, text) and accepts(none, text)
    for text in (one.replace('"a"', '"b"'), one.replace("add", "sub"), f"{one} and"):
        assert not accepts(required, text) and not accepts(auto, text) and not accepts(none, text)


def test_one_call_at_most_if_there_may_not_be_several() -> None:
    rules = Hermes().rules(TOOLS[1:], {}, several=False, strict=False)
    call = '<tool_call>\n{"name": "clock", "arguments": {"any": [1]}}\n</tool_call>'
    assert accepts(Grammar(rules.answer, rules.rules), call)
    assert not accepts(Grammar(rules.answer, rules.rules), f"{call}\n{call}")
