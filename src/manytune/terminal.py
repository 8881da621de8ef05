"""Text of others where a terminal shows it: it can't move the cursor, set the clipboard or write from right to left.

And libraries that say what no user can change are quiet.
"""

from __future__ import annotations

import logging
import re

#: C0 but for the line feed and the tab, DEL, C1, and what changes the direction of writing.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

#: transformers imports torchao wherever it is installed, which warns of kernels for other devices, and through torch.
#: bitsandbytes misses a kernel of its own on CPUs with AVX512-BF16, for a form of 4-bit weights that isn't used here.
_CHATTY = ("torchao", "torch.utils._pytree", "bitsandbytes.backends.cpu.ops")


def quiet_libraries() -> None:
    """Have libraries say nothing of what a user of manytune can't change."""
    for library in _CHATTY:
        logging.getLogger(library).setLevel(logging.ERROR)


def visible(text: str) -> str:
    r"""A text with such characters as their escapes, `\x1b` for example."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def visible_json(document: str) -> str:
    r"""A JSON document with such characters as JSON's escapes, `\u009b` for example: its content is the same."""
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", document)
