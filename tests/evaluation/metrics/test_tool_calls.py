"""Tool calls in answers, in the form of every family."""

import pytest
from tests.evaluation.metrics.corpora import total

from manytune.evaluation.metrics.tool_calls import calls_in

CALL = ("add", '{"a": 1, "b": [true, "x"]}')


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": [true, "x"]}}\n</tool_call>',
        'I add. <tool_call>{"arguments": {"b": [true, "x"], "a": 1.0}, "name": "add"}</tool_call>',
        '{"name": "add", "parameters": {"a": 1, "b": [true, "x"]}}',
        '[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1, "b": [true, "x"]}, "id": "abcdefghi"}]',
        '[TOOL_CALLS]add[ARGS]{"a": 1, "b": [true, "x"]}',
        '{"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": [true, "x"]}}}',
    ],
)
def test_a_call_is_read_from_every_form(text):
    assert calls_in(text) == (CALL,)


@pytest.mark.parametrize(
    "text", ["", "add(1)", '{"name": "add"}', '{"name": "add", "arguments": {"a": 1}', "{" * 5000]
)
def test_text_without_a_whole_call_has_none(text):
    assert calls_in(text) == ()


def test_several_calls_are_read_in_order():
    text = '<tool_call>{"name": "a", "arguments": {}}</tool_call> <tool_call>{"name": "b", "arguments": {}}</tool_call>'
    assert [name for name, _ in calls_in(text)] == ["a", "b"]
    assert [name for name, _ in calls_in('[TOOL_CALLS]a[ARGS]{}[TOOL_CALLS]b[ARGS]{"x": 1}')] == ["a", "b"]


@pytest.mark.parametrize(
    ("said", "wanted", "names", "calls"),
    [
        ('{"name": "f", "arguments": {"a": 1}}', '{"name": "f", "arguments": {"a": 1.0}}', 1, 1),
        ('{"name": "f", "arguments": {"a": true}}', '{"name": "f", "arguments": {"a": 1}}', 1, 0),
        ('{"name": "g", "arguments": {"a": 1}}', '{"name": "f", "arguments": {"a": 1}}', 0, 0),
        ("I don't know", '{"name": "f", "arguments": {}}', 0, 0),
        ('{"name": "f", "arguments": {}}', "No tool is needed.", 0, 0),
        ("None needed.", "No tool is needed.", 1, 1),
        (
            '{"name": "f", "arguments": {}} {"name": "g", "arguments": {}}',
            '{"name": "g", "arguments": {}} {"name": "f", "arguments": {}}',
            1,
            1,
        ),
    ],
)
def test_the_right_function_and_arguments_equal_as_json(said, wanted, names, calls):
    assert total("tool_names", [said], [[wanted]]) == names
    assert total("tool_calls", [said], [[wanted]]) == calls


def test_any_reference_may_be_met():
    references = [['{"name": "f", "arguments": {}}', '{"name": "g", "arguments": {}}']]
    assert total("tool_calls", ['{"name": "g", "arguments": {}}'], references) == 1
