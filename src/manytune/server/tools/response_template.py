"""Calls read by what the tokenizer itself says of its answers: transformers' `response_template`."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from transformers.utils.chat_parsing import ResponseParser
from transformers.utils.chat_parsing.response_templates import load_response_template

from manytune.errors import GrammarError
from manytune.server.tools.calls import CallReader, CallRules, Part, Tool, ToolFormat, Written, new_id

_CALLS, _THOUGHTS = "tool_calls", frozenset({"thinking", "reasoning", "reasoning_content"})


class ResponseTemplate:
    """The calls that a tokenizer's response template describes. It reads them when they are complete.

    Args:
        template: The tokenizer's.
        family: How the chat template writes calls, if that is known: for grammars, which a response template isn't.

    Raises:
        ValueError: transformers can't use the template.
    """

    name = "the tokenizer's response template"

    def __init__(self, template: Mapping[str, Any], family: ToolFormat | None) -> None:
        self._template = load_response_template(dict(template))
        self._family = family

    def reader(self, tools: Collection[str]) -> CallReader:
        """A reader of one answer."""
        return _Reader(ResponseParser(self._template))

    def rules(
        self, tools: Sequence[Tool], special: Mapping[str, int], *, several: bool, strict: bool
    ) -> CallRules:
        """The family's."""
        if self._family is None:
            raise GrammarError(
                "tool calls of this model can be read but not enforced: leave out tool_choice, "
                "parallel_tool_calls and strict."
            )
        return self._family.rules(tools, special, several=several, strict=strict)


def describes_calls(template: Any) -> bool:
    """Whether a tokenizer's response template says how calls are read."""
    return isinstance(template, Mapping) and _CALLS in template.get("fields", {})


class _Reader:
    def __init__(self, parser: ResponseParser) -> None:
        self._parser = parser
        self._written = Written(new_id)
        self._body = ""  # of the call that is being read; text if it isn't what the template says
        self._failed = False

    def push(self, text: str) -> Part:
        if self._failed:
            return Part(text)
        try:
            self._take(self._parser.feed(text))
        except ValueError:  # a call that isn't what the template says
            return self._fail()
        return self._written.take()

    def finish(self) -> Part:
        if self._failed:
            return Part()
        try:
            self._take(self._parser.finalize()[1])
        except ValueError:  # the answer ends within a call, or has no text
            return self._fail()
        return self._written.take()

    def _fail(self) -> Part:
        self._failed = True
        part = self._written.take()
        return Part(part.text + self._body, part.calls)

    def _take(self, events: Sequence[Mapping[str, Any]]) -> None:
        for event in events:
            if event["field"] == _CALLS and event["type"] == "region_chunk":
                self._body += event["text"]
            elif event["field"] == _CALLS and event["type"] == "region_close":
                self._body = ""
                values = event["value"] if isinstance(event["value"], list) else [event["value"]]
                for value in values:
                    self._call(value)
            elif event["type"] == "region_chunk" and event["field"] not in {_CALLS, *_THOUGHTS}:
                self._written.add_text(event["text"])

    def _call(self, value: Any) -> None:
        function = value.get("function", value)
        arguments = function.get("arguments", {})
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        self._written.begin_call(str(function["name"]), text)
