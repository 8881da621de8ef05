"""Which form a model's calls have: found by having its chat template write one and reading it."""

from __future__ import annotations

import json
from typing import Any

from manytune.data.conversation.conversation import Message, ToolCall
from manytune.data.encoding.encode import Encoder
from manytune.data.templates import Example
from manytune.errors import TemplateError
from manytune.server.tools.calls import ToolFormat
from manytune.server.tools.hermes import Hermes
from manytune.server.tools.llama3 import Llama3
from manytune.server.tools.mistral import Mistral, writes_names
from manytune.server.tools.plain import Plain
from manytune.server.tools.response_template import ResponseTemplate, describes_calls

_NAME, _ARGUMENTS = "manytune_probe", {"name": "x", "count": 1}
_CALL = ToolCall(_NAME, json.dumps(_ARGUMENTS), "abcdefghi")  # Mistral's templates want nine letters
_TOOL = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "A function.",
        "parameters": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "description": "A name."},
                "count": {"type": "integer", "description": "A number."},
            },
            "required": ["name", "count"],
        },
    },
}


def format_of(encoder: Encoder) -> ToolFormat | None:
    """The form of the calls that a tokenizer's chat template writes.

    None if no reader reads what it writes. Where the template writes no tools they are text, in Hermes' form.
    """
    family = Hermes() if not encoder.writes_tools else _family(encoder)
    template: Any = getattr(encoder.tokenizer, "response_template", None)
    if encoder.writes_tools and describes_calls(template):
        return ResponseTemplate(template, family)
    return family


def _family(encoder: Encoder) -> ToolFormat | None:
    asked = Example((Message("user", "manytune"),), "", "", 0, tools=(_TOOL,), tool_calls=(_CALL,))
    try:
        text = encoder.reference(asked)
    except TemplateError:
        return None
    bare: ToolFormat = Llama3() if '"parameters"' in text else Plain()
    families: tuple[ToolFormat, ...] = (Hermes(), Mistral(named=writes_names(text)), bare)
    return next((one for one in families if _reads(one, text)), None)


def _reads(family: ToolFormat, text: str) -> bool:
    """Whether a family's reader finds the call in what the template writes, and nothing else."""
    reader = family.reader([_NAME])
    parts = (reader.push(text), reader.finish())
    deltas = [delta for part in parts for delta in part.calls]
    if "".join(part.text for part in parts).strip() or [one.name for one in deltas if one.name] != [_NAME]:
        return False
    try:
        return bool(json.loads("".join(one.arguments for one in deltas)) == _ARGUMENTS)
    except ValueError:
        return False
