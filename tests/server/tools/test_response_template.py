"""Calls are read by what the tokenizer's response template says; the templates here are written by hand."""

import json

import pytest
from tests.server.tools.reading import read
from tests.server.tools.test_hermes import TOOLS

from manytune.errors import GrammarError
from manytune.server.tools.hermes import Hermes
from manytune.server.tools.response_template import ResponseTemplate, describes_calls

# A form that is none of the families': a name in an attribute, and arguments as lines.
TEMPLATE = {
    "start_anchor": "<|assistant|>",
    "defaults": {"role": "assistant"},
    "fields": {
        "content": {"close_pattern": r"\Z", "content": "text", "content_args": {"strip": False}},
        "tool_calls": {
            "open_pattern": r'<call name="(?P<name>\w+)">',
            "close": "</call>",
            "content": "json",
            "repeats": True,
            "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
        },
    },
}
TEXT = 'Let me see. <call name="add">{"a": 1}</call><call name="clock">{}</call>'


def test_text_and_calls_are_read_whole_and_in_parts() -> None:
    form = ResponseTemplate(TEMPLATE, None)
    for parts in ([TEXT], list(TEXT), [TEXT[:30], TEXT[30:]]):
        found = read(form, parts)
        assert found.text.strip() == "Let me see."
        assert [(name, json.loads(text)) for name, text in found.calls] == [("add", {"a": 1}), ("clock", {})]


def test_a_call_that_is_not_what_it_says_is_text() -> None:
    found = read(ResponseTemplate(TEMPLATE, None), ['Hm. <call name="add">{"a": </call> Sorry.'])
    assert found.calls == () and '{"a": ' in found.text and "Hm." in found.text


@pytest.mark.parametrize("value", ["[1]", "3", '{"arguments": {}}', '{"name": 7}', '{"function": null}'])
def test_json_that_calls_nothing_is_text(value: str) -> None:
    fields = {**TEMPLATE["fields"], "tool_calls": {"open": "<call>", "close": "</call>", "content": "json"}}
    found = read(ResponseTemplate({**TEMPLATE, "fields": fields}, None), [f"Hm. <call>{value}</call> Sorry."])
    assert found.calls == () and value in found.text


def test_a_grammar_is_the_familys_or_refused() -> None:
    with pytest.raises(GrammarError, match="can be read but not enforced"):
        ResponseTemplate(TEMPLATE, None).rules(TOOLS, {}, several=True, strict=True)
    expected = Hermes().rules(TOOLS, {}, several=True, strict=True)
    assert ResponseTemplate(TEMPLATE, Hermes()).rules(TOOLS, {}, several=True, strict=True) == expected


def test_a_template_without_calls_says_nothing_of_them() -> None:
    assert describes_calls(TEMPLATE)
    assert not describes_calls(None) and not describes_calls({"fields": {"content": {}}})
