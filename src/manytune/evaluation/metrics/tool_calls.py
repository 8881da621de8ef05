"""Tool calls: the share of answers that call what a reference calls.

Calls are read from the text, in the forms that chat templates write: a JSON object with `name` and `arguments`
(Hermes, Qwen, Mistral) or `parameters` (Llama 3), alone, in a list, or between tags, and `name[ARGS]{...}` (Mistral's
later ones).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from manytune.evaluation.metrics.base import MeanOfItems, number_of_references
from manytune.evaluation.metrics.json_values import canonical, values_in
from manytune.evaluation.results import Answer

_WITH_ARGS = re.compile(r"([\w.-]+)\s*\[ARGS\]\s*(?=\{)")


@dataclass(frozen=True, slots=True)
class ToolCalls(MeanOfItems):
    """Share of items whose answer makes the calls of a reference: the same functions, with arguments equal as JSON.

    The order of several calls doesn't matter. Where the reference calls nothing, the answer mustn't, either.
    """

    name: str = "tool_calls"
    label: str = "Tool calls"

    def scores(self, answers: Sequence[Answer], references: Sequence[Sequence[str]]) -> Sequence[float]:
        """1 or 0 an item."""
        return [
            float(Counter(calls_in(answer.text)) in [Counter(calls_in(text)) for text in texts])
            for answer, texts in zip(answers, references, strict=True)
        ]

    def signature(self, references: Sequence[Sequence[str]]) -> str:
        """For example `nrefs:1|calls:name+arguments|order:any|mrefs:any`."""
        return f"nrefs:{number_of_references(references)}|calls:name+arguments|order:any|mrefs:any"


@dataclass(frozen=True, slots=True)
class ToolNames(MeanOfItems):
    """Share of items whose answer calls the functions of a reference, whatever the arguments."""

    name: str = "tool_names"
    label: str = "Functions called"

    def scores(self, answers: Sequence[Answer], references: Sequence[Sequence[str]]) -> Sequence[float]:
        """1 or 0 an item."""
        return [
            float(_names(answer.text) in [_names(text) for text in texts])
            for answer, texts in zip(answers, references, strict=True)
        ]

    def signature(self, references: Sequence[Sequence[str]]) -> str:
        """For example `nrefs:1|calls:name|order:any|mrefs:any`."""
        return f"nrefs:{number_of_references(references)}|calls:name|order:any|mrefs:any"


def calls_in(text: str) -> tuple[tuple[str, str], ...]:
    """Return the calls in a text: each function's name, and its arguments as JSON with sorted keys."""
    named = list(_WITH_ARGS.finditer(text))
    if named:
        arguments = (next(values_in(text[found.end() :]), None) for found in named)
        return tuple((found[1], canonical(one)) for found, one in zip(named, arguments, strict=True))
    return tuple(call for value in values_in(text) for call in _calls(value))


def _calls(value: Any) -> list[tuple[str, str]]:
    if isinstance(value, list):
        return [call for item in value for call in _calls(item)]
    if not isinstance(value, dict):
        return []
    function = value.get("function", value)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return []
    arguments = function.get("arguments", function.get("parameters"))
    return [] if not isinstance(arguments, dict) else [(function["name"], canonical(arguments))]


def _names(text: str) -> Counter[str]:
    return Counter(name for name, _ in calls_in(text))
