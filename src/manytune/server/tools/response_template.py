"""Calls read by what the tokenizer itself says of its answers: transformers' `response_template`."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
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
        # What the prompt begins of an answer, such as reasoning, has been taken off before the answer comes here.
        return _Reader(ResponseParser(self._template, prefix=""))

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
        for place, character in enumerate(text):  # what is found before a failure is kept
            if self._failed:
                self._written.add_text(text[place:])
                break
            self._try(self._parser.feed, character)
        return self._written.take()

    def finish(self) -> Part:
        if not self._failed:
            self._try(lambda: self._parser.finalize()[1])
        return self._written.take()

    def _try(self, read: Callable[..., Sequence[Mapping[str, Any]]], *text: str) -> None:
        """Take the events of the parser, which fails at a call that isn't what the template says."""
        try:
            self._take(read(*text))
        except ValueError:
            self._failed = True
            self._written.add_text(self._body)

    def _take(self, events: Sequence[Mapping[str, Any]]) -> None:
        for event in events:
            if event["field"] == _CALLS and event["type"] == "region_chunk":
                self._body += event["text"]
            elif event["field"] == _CALLS and event["type"] == "region_close":
                values = event["value"] if isinstance(event["value"], list) else [event["value"]]
                for value in values:
                    self._call(value)
                self._body = ""
            elif event["type"] == "region_chunk" and event["field"] not in {_CALLS, *_THOUGHTS}:
                self._written.add_text(event["text"])

    def _call(self, value: Any) -> None:
        function = value.get("function", value) if isinstance(value, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise ValueError("no call")
        arguments = function.get("arguments", {})
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        self._written.begin_call(function["name"], text)
