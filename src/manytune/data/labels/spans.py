"""Spans of words that tags mark, such as named entities in BIO tags."""

from __future__ import annotations

from collections.abc import Sequence

Span = tuple[int, int, str]
"""Its first word's place, the place after its last word, and its type."""

OUTSIDE = "O"


def spans_of(tags: Sequence[str]) -> list[Span]:
    """The spans that tags mark, in order.

    `B-` begins a span, and so does `I-` after a word outside of spans or of another type; `E-` ends one with its word,
    and `S-` is one of a single word. `O` is outside. A tag without such a mark, as parts of speech have, is a span of
    its word alone.
    """
    found: list[Span] = []
    begun: int | None = None
    kind = ""
    for place, tag in enumerate([*tags, OUTSIDE]):
        mark, dash, name = tag.partition("-")
        marked = bool(dash) and mark in ("B", "I", "E", "S")
        goes_on = begun is not None and marked and mark in "IE" and name == kind
        if begun is not None and not goes_on:
            found.append((begun, place, kind))
            begun = None
        if not marked:
            if tag != OUTSIDE:
                found.append((place, place + 1, tag))
            continue
        if not goes_on:
            begun, kind = place, name
        if mark in "ES":
            assert begun is not None
            found.append((begun, place + 1, kind))
            begun = None
    return found
