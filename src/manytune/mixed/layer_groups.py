"""Where in a model adapters sit: like layers of its blocks are one kind, and some kinds share their input."""

from __future__ import annotations

import re
from dataclasses import dataclass

_BLOCK = re.compile(r"(.*?)\.(\d+)\.(.*)")

#: Last names of layers that usually read the same tensor, so that one product serves them. Whether they do is checked
#: at each call.
_TOGETHER = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("query", "key", "value"),
)


@dataclass(frozen=True, order=True)
class Kind:
    """Layers of one path but for the block's number, and of one shape.

    Attributes:
        path: With `*` for the number.
        inputs: Number of inputs.
        outputs: Number of outputs.
    """

    path: str
    inputs: int
    outputs: int


def kind_of(path: str, inputs: int, outputs: int) -> tuple[Kind, int]:
    """A layer's kind, and the number of its block; 0 outside of blocks."""
    found = _BLOCK.fullmatch(path)
    if found is None:
        return Kind(path, inputs, outputs), 0
    return Kind(f"{found[1]}.*.{found[3]}", inputs, outputs), int(found[2])


def path_of(kind: Kind, block: int) -> str:
    """The path of a kind's layer."""
    return kind.path.replace("*", str(block), 1)


def together(kinds: list[Kind]) -> list[tuple[Kind, ...]]:
    """Kinds in groups that usually read the same tensor, in their order."""
    groups: dict[tuple[str, int, tuple[str, ...]], list[Kind]] = {}
    for kind in kinds:
        parent, _, name = kind.path.rpartition(".")
        family = next((names for names in _TOGETHER if name in names), (name,))
        groups.setdefault((parent, kind.inputs, family), []).append(kind)
    return [tuple(group) for group in groups.values()]
