"""Where manytune differs from HF PEFT on purpose: read from `docs/migrating-from-peft.md`, and looked for in cells."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from tests.methods.prompts import IS_AFTER_PEFT
from tests.parity.calls import CALLS

PAGE = Path(__file__).parents[2] / "docs" / "migrating-from-peft.md"
HEADING = "## What differs, and why"

_OUTPUTS = ("output*", "loss*", "first,*", "second", "loaded*")
_SHIFTED = (
    "output of the second",
    "inside",
    "first,*",
    "losses of the second",
    "second",
    "disabled",
    "unloaded",
    "output*",
)

#: Which cells need an entry of the page, and for which observations. Scripts with odd options name theirs themselves.
MATRIX: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "merge-exact": (("*-merge", ("base as before", "unmerge")),),
    "unload": (("*-disable", ("unloaded",)),),
    "half-precision": (("*-bf16", ("types", "saved types", "loaded types")),),
    "biases": (
        ("biases-*-second", ("trains after switching", *_OUTPUTS, "tensors of the first")),
        ("biases-*-delete", ("output after other", "trains after default")),
        ("biases-*-load", ("trains*",)),
    ),
    "shifted-base": (
        ("pissa-*-tied", ("disabled",)),
        *((f"{init}-*-{op}", _SHIFTED) for init in ("pissa", "olora") for op in (
            "load", "disable", "second", "delete", "modules_to_save",
        )),
    ),
    "tied-merge": (("*-bart-tied", ("read again",)),),
    "own-tables": (("*-resized", ("disabled",)),),
    "adalora-count": (("adalora-*-train", ("counts",)), ("adalora-*-bf16", ("types", "loaded types"))),
    "adalora-loaded": (("adalora-*", ("output of *", "loaded*")),),
    "adalora-second": (("adalora-*-second", ("*",)), ("adalora-*-delete", ("*",))),
    "prompt-positions": (("p*_tuning-*-train", ("generated",)),),
    "prompt-labels": (("p*_tuning-bert_tokens-*", _OUTPUTS),),
    "prompt-disabled": (("p*_tuning-*-disable", ("*",)), ("p*_tuning-*", ("disabled",))),
    "prompt-frozen": (
        ("p*_tuning-*-load", ("trains, *",)),
        ("p*_tuning-*-second", ("trains*",)),
        ("p*_tuning-*-delete", ("output after other",)),
    ),
    "prompt-resumed": (("p*_tuning-*-load", ("to train on", "trains on")), ("p*_tuning-*-resume", ("*",))),
}  # fmt: skip


#: Those that only cells with packed weights need, which are there where bitsandbytes is.
OF_PACKED = {
    "quantized-merge": (
        ("*-llama_nf4-merge", ("*",)),
        ("*-llama_int8-merge", ("*",)),
        ("ia3-llama_nf4-disable", ("unload", "unloaded", "plain")),
        ("ia3-llama_int8-disable", ("unload", "unloaded", "plain")),
    ),
    "dora-int8": (("dora-llama_int8-*", ("*",)),),
}


#: Those of releases of transformers that came after the HF PEFT that is installed.
OF_LATER = {"prefix-encoders": (("prefix*_tuning-bert*", ("*",)),)}
LATER = OF_LATER if IS_AFTER_PEFT else {}


def listed() -> dict[str, str]:
    """The entries of the page's table by their ids: the rest of the row."""
    table = PAGE.read_text().split(f"{HEADING}\n")[1].split("\n## ")[0]
    return dict(re.findall(r"^\| `([a-z0-9-]+)` \|(.*)\|$", table, flags=re.MULTILINE))


def entries(cell: str, observation: str) -> Iterator[str]:
    """The ids of the entries by which an observation of a cell may differ."""
    for entry, places in {**MATRIX, **OF_PACKED, **LATER}.items():
        if any(fnmatchcase(cell, where) and _among(observation, names) for where, names in places):
            yield entry
    for call in CALLS:
        if cell == f"call-{call.name}":
            yield from (entry for entry, names in call.differs.items() if _among(observation, names))


def cells_of(entry: str) -> list[str]:
    """Patterns of the names of cells that an entry is needed by, each of them."""
    own = [f"call-{call.name}" for call in CALLS if entry in call.differs]
    return [where for where, _ in {**MATRIX, **OF_PACKED, **LATER}.get(entry, ())] + own


def _among(observation: str, names: tuple[str, ...]) -> bool:
    return observation in names or any(fnmatchcase(observation, name) for name in names)
