"""Running text for continued pre-training: a document a row, in the field `text`."""

from __future__ import annotations

from collections.abc import Mapping

from manytune.data.conversation.values import described
from manytune.errors import DataError

FIELDS = ("text",)


def read(fields: Mapping[str, object]) -> str:
    """Return a row's document.

    Raises:
        DataError: The row has none, or an empty one.
    """
    text = fields.get("text")
    if not isinstance(text, str):
        raise DataError(f"a row of running text needs text in the field 'text'; it is {described(text)}")
    if not text.strip():
        raise DataError("the field 'text' is empty")
    return text
