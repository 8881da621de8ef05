"""The grammar of an answer, with what its chat template and its reasoning put before it."""

import pytest
from tests.engine.constraints.tokens import accepts
from tests.server.tools.test_hermes import TOOLS

from manytune.data.encoding.answer_format import BARE, AnswerFormat
from manytune.engine.constraints.grammar import Grammar, lark_grammar, regex_grammar, schema_grammar
from manytune.server.bodies.answer_form import AnswerForm
from manytune.server.tools.calls import Tool
from manytune.server.tools.hermes import Hermes

CALL = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
NUMBER = regex_grammar("[0-9]+")
THINKING = AnswerFormat("<think>\n\n</think>\n\n", "", "<|im_end|>", ("<think>\n", "\n</think>\n\n"))
BEGUN = AnswerFormat("", "", "<|im_end|>", ("", "\n</think>\n\n"))


def grammar(form: AnswerForm, answers: AnswerFormat = BARE) -> Grammar:
    found = form.grammar(answers, Hermes() if form.tools else None, {})
    assert found is not None
    return found


@pytest.mark.parametrize(
    "form",
    [
        AnswerForm(),
        AnswerForm(tools=tuple(TOOLS)),
        AnswerForm(choice="none"),
    ],
)
def test_what_may_be_anything_has_no_grammar(form: AnswerForm) -> None:
    assert form.grammar(THINKING, Hermes(), {}) is None


@pytest.mark.parametrize(
    ("form", "right", "wrong"),
    [
        (AnswerForm(NUMBER), ["12"], ["", "a", CALL]),
        (
            AnswerForm(tools=tuple(TOOLS), choice="required"),
            [CALL, f"{CALL}\n{CALL}"],
            ["12", "", f"a {CALL}"],
        ),
        (AnswerForm(tools=tuple(TOOLS), choice="required", several=False), [CALL], [f"{CALL}\n{CALL}"]),
        (AnswerForm(tools=tuple(TOOLS), choice="required", callable="add"), [], [CALL]),
        (AnswerForm(tools=tuple(TOOLS), choice="none"), ["12", "", "a <tool"], [CALL, f"a {CALL}"]),
        (AnswerForm(tools=tuple(TOOLS), several=False), ["12", CALL, f"a {CALL}"], [f"{CALL}\n{CALL}"]),
        (AnswerForm(NUMBER, tuple(TOOLS)), ["12", CALL], ["a", f"1 {CALL}"]),
        (AnswerForm(NUMBER, tuple(TOOLS), "none"), ["12"], ["a", CALL]),
        (AnswerForm(NUMBER, tuple(TOOLS), "required"), [CALL], ["12"]),
    ],
)
def test_the_text_and_the_choice_among_tools_make_the_grammar(
    form: AnswerForm, right: list[str], wrong: list[str]
) -> None:
    found = grammar(form)
    assert [accepts(found, text) for text in right] == [True] * len(right)
    assert [accepts(found, text) for text in wrong] == [False] * len(wrong)


def test_a_strict_tool_holds_the_models_own_calls_to_its_schema_and_others_to_json() -> None:
    parameters = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": False}
    tools = (Tool("add", parameters, True, "tools.0"), Tool("sub", parameters, False, "tools.1"))
    found = grammar(AnswerForm(tools=tools))
    call = '<tool_call>\n{{"name": "{}", "arguments": {}}}\n</tool_call>'
    assert accepts(found, call.format("add", '{"a": 1}')) and not accepts(
        found, call.format("add", '{"b": 1}')
    )
    assert accepts(found, call.format("sub", '{"b": 1}')) and not accepts(found, call.format("sub", "[1]"))
    assert accepts(found, "I can't.")


@pytest.mark.parametrize(
    "text", [NUMBER, schema_grammar({"type": "integer"}), lark_grammar("start: /[0-9]+/")]
)
def test_reasoning_may_come_before_an_answer_and_must_where_the_prompt_begins_it(text: Grammar) -> None:
    found = grammar(AnswerForm(text), THINKING)
    assert all(
        accepts(found, begun + "12")
        for begun in ("", "<think>\n\n</think>\n\n", "<think>\nHm.\n</think>\n\n")
    )
    assert not accepts(found, "<think>\nHm.\n</think>\n\nx") and not accepts(found, "Hm. 12")
    found = grammar(AnswerForm(text), BEGUN)
    assert accepts(found, "Hm.\n</think>\n\n12") and not accepts(found, "12")


def test_what_the_template_writes_before_an_answer_may_come_before_it() -> None:
    found = grammar(AnswerForm(NUMBER), AnswerFormat(opening=" ", end="</s>"))
    assert accepts(found, " 12") and accepts(found, "12") and not accepts(found, "  12")


def test_special_marks_are_spelled_as_tokens() -> None:
    special = {"<think>": 5, "</think>": 6}
    found = AnswerForm(NUMBER).grammar(THINKING, None, special)
    assert found is not None and "<[5]> THOUGHTS <[6]>" in found.rules
    half = AnswerForm(NUMBER).grammar(THINKING, None, {"<think>": 5})
    assert half is not None and "<[5]> thoughts" in half.rules
