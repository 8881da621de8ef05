"""Where a chat template says that the model generates: its `{% generation %}` blocks, found in the rendered text.

The tags are replaced by private characters that the template then prints, so that it needs no other renderer.
"""

from __future__ import annotations

import re

Spans = tuple[tuple[int, int], ...]
"""Ranges of characters, in order: (first, one after the last)."""

_BEGIN, _END = "\ue000", "\ue001"
_TAG = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")


def marking(template: str) -> str | None:
    """Return a template that prints a private character at each mark; None if it has no marks."""
    # A block tag at each side keeps what Jinja2 does to the white space next to a tag.
    found, count = _TAG.subn(_printing, template)
    return found if count else None


def unmarked(text: str) -> tuple[str, Spans]:
    """Return a text without the private characters, and the ranges between them."""
    parts = re.split(f"([{_BEGIN}{_END}])", text)
    plain, spans, begun = "", [], 0
    for part in parts:
        if part == _BEGIN:
            begun = len(plain)
        elif part == _END:
            spans.append((begun, len(plain)))
        else:
            plain += part
    return plain, tuple(span for span in spans if span[0] < span[1])


def _printing(tag: re.Match[str]) -> str:
    character = _END if tag[2] else _BEGIN
    return f"{{%{tag[1]} if true %}}{{{{ '{character}' }}}}{{% endif {tag[3]}%}}"
