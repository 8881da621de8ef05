"""Conversations as Alpaca's files have them: `instruction`, `input` and `output`, with `system` and `history`."""

from __future__ import annotations

from collections.abc import Mapping

from manytune.data.conversation.conversation import Conversation, Message
from manytune.data.conversation.values import described, from_json, optional_text
from manytune.data.printable import is_absent
from manytune.errors import DataError

FIELDS = ("instruction", "input", "output", "system", "history")


def read(fields: Mapping[str, object]) -> Conversation:
    """Return a row's conversation. The answers in `history` are learned, too, unless `learn` is `last`.

    Raises:
        DataError: The row has no such form.
    """
    parts = {
        name: optional_text(fields.get(name), name) for name in ("instruction", "input", "output", "system")
    }
    for name in ("instruction", "output"):
        if parts[name] is None:
            raise DataError(
                f"a row of Alpaca's form needs the field {name!r}, which is missing or empty here"
            )
    asked = "\n\n".join(filter(None, (parts["instruction"], parts["input"])))
    system = [] if parts["system"] is None else [Message("system", parts["system"])]
    last = (Message("user", asked), Message("assistant", parts["output"] or ""))
    return Conversation((*system, *_history(fields.get("history")), *last))


def _history(value: object) -> list[Message]:
    pairs = from_json(value)
    if is_absent(pairs) or pairs == "":
        return []
    if not isinstance(pairs, list):
        raise DataError(
            f"history should be a list of pairs of an instruction and its answer; it is {described(pairs)}"
        )
    found: list[Message] = []
    for place, pair in enumerate(pairs, start=1):
        if (
            not isinstance(pair, list | tuple)
            or len(pair) != 2
            or not all(isinstance(text, str) for text in pair)
        ):
            raise DataError(f"history's pair {place} should be two texts; it is {described(pair)}")
        found += [Message("user", pair[0]), Message("assistant", pair[1])]
    return found
