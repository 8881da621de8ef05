"""Calls as Llama 3.1 and its successors write them: the answer is the call.

    {"name": "add", "parameters": {"a": 1}}

`<|python_tag|>` may come before it, and further calls after semicolons.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from manytune.server.tools.bare import BareReader
from manytune.server.tools.call_texts import object_rules
from manytune.server.tools.calls import CallReader, CallRules, Tool, new_id

_TAG = "<|python_tag|>"


class Llama3:
    """Bare objects with parameters."""

    name = "llama3"

    def reader(self, tools: Collection[str]) -> CallReader:
        """A reader of one answer."""
        return BareReader(tools, _TAG, new_id)

    def rules(
        self, tools: Sequence[Tool], special: Mapping[str, int], *, several: bool, strict: bool
    ) -> CallRules:
        """The calls as parts of a grammar; the template writes one call to an answer, and so does the grammar."""
        return CallRules(
            calls="call_object",
            answer="call_object | TEXT",
            text="TEXT",
            rules=f"{object_rules(tools, 'parameters', strict=strict)}\n{NO_OBJECT}",
        )


#: Text that begins like no call.
NO_OBJECT = r"TEXT: /([^\s{\[](?s:.)*)?/"
