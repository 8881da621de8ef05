"""Text of others where a terminal shows it: it can't move the cursor, set the clipboard or write from right to left."""

from __future__ import annotations

import re

#: C0 but for the line feed and the tab, DEL, C1, and what changes the direction of writing.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    r"""A text with such characters as their escapes, `\x1b` for example."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def visible_json(document: str) -> str:
    r"""A JSON document with such characters as JSON's escapes, `\u009b` for example: its content is the same."""
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", document)
