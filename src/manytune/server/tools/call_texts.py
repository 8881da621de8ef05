"""Grammars of calls that are JSON objects with a name and arguments."""

from __future__ import annotations

import json
from collections.abc import Sequence

from manytune.engine.constraints.grammar import json_rule
from manytune.errors import GrammarError
from manytune.server.tools.calls import Tool


def object_rules(tools: Sequence[Tool], key: str, *, strict: bool, more: str = "") -> str:
    r"""The rule `call_object`, such as `{"name": "add", "arguments": {...}}`, and those that it names.

    Args:
        tools: The functions.
        key: What the arguments are called in a call.
        strict: Whether arguments must be valid against the schema of a tool that isn't strict, too.
        more: What may come after the arguments, as a part of a rule.

    Raises:
        GrammarError: A schema isn't supported.
    """
    heads = [json.dumps(f'{json.dumps(tool.name)}, "{key}": ') for tool in tools]
    choices = " | ".join(f"{head} arguments_{place}" for place, head in enumerate(heads))
    opening = json.dumps('{"name": ')
    return f'call_object: {opening} ({choices}) {more} "}}"\n{arguments_rules(tools, strict=strict)}'


def arguments_rules(tools: Sequence[Tool], *, strict: bool) -> str:
    """A rule `arguments_0`, `arguments_1`, … for each function's arguments.

    Raises:
        GrammarError: A schema isn't supported.
    """
    return "\n".join(
        f"arguments_{place}: {_arguments(tool, strict or tool.strict)}" for place, tool in enumerate(tools)
    )


def _arguments(tool: Tool, strict: bool) -> str:
    if not strict:
        return json_rule({"type": "object"})
    schema = {"type": "object", **tool.parameters}
    if schema["type"] != "object":
        raise GrammarError(
            f"expected a schema of type 'object', found {str(schema['type'])[:40]!r}.", where=tool.where
        )
    return json_rule(schema, tool.where)
