"""General text that is on every machine with Python: passages of its manual, for probes and for rehearsal."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from pydoc_data.topics import topics

SOURCE = f"the manual in Python {platform.python_version()} (pydoc_data.topics)"

_PROBE_LENGTH = 800  # characters, about 170 tokens
_REHEARSAL_LENGTH = 450
_SENTENCES = re.compile(r"[A-Z].*[.!?:]$")


def probe_passages() -> tuple[str, ...]:
    """One passage of every other topic that has one, in the order of their titles."""
    found = (next(_passages(topics[title], _PROBE_LENGTH), None) for title in sorted(topics)[0::2])
    return tuple(passage for passage in found if passage is not None)


def rehearsal_passages() -> tuple[tuple[str, str], ...]:
    """All passages of the other topics, each as its beginning and the rest; no probe is about them."""
    cut = []
    probed = " ".join(probe_passages())
    for title in sorted(topics)[1::2]:
        for passage in _passages(topics[title], _REHEARSAL_LENGTH):
            if any(sentence in probed for sentence in passage.split(". ")):  # topics quote one another
                continue
            words = passage.split(" ")
            third = len(words) // 3
            cut.append((" ".join(words[:third]), " ".join(words[third:])))
    return tuple(cut)


def _passages(text: str, length: int) -> Iterator[str]:
    """Consecutive paragraphs of prose, joined until they are long enough; code and lists end a passage."""
    joined = ""
    for paragraph in text.split("\n\n"):
        line = " ".join(paragraph.split())
        if paragraph.startswith((" ", "*")) or not _SENTENCES.fullmatch(line):
            joined = ""
            continue
        joined = f"{joined} {line}".strip()
        if len(joined) >= length:
            yield joined
            joined = ""
