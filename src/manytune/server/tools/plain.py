"""Calls as plain JSON.

    {"name": "add", "arguments": {"a": 1}}

The answer is such an object, or several, or a list of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from manytune.server.tools.bare import BareReader
from manytune.server.tools.call_texts import object_rules
from manytune.server.tools.calls import CallReader, CallRules, Tool, new_id
from manytune.server.tools.llama3 import NO_OBJECT


class Plain:
    """Bare objects with arguments."""

    name = "plain JSON"

    def reader(self, tools: Collection[str]) -> CallReader:
        """A reader of one answer."""
        return BareReader(tools, "", new_id)

    def rules(
        self, tools: Sequence[Tool], special: Mapping[str, int], *, several: bool, strict: bool
    ) -> CallRules:
        """The calls as parts of a grammar."""
        calls = r'call_object ("\n" call_object)*' if several else "call_object"
        return CallRules(
            calls=calls,
            answer=f"{calls} | TEXT",
            text="TEXT",
            rules=f"{object_rules(tools, 'arguments', strict=strict)}\n{NO_OBJECT}",
        )
