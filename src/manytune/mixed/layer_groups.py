"""Groups of like layers: a model's blocks repeat, so adapters keep the weights of like layers in one tensor.

Some groups usually read the same tensor, such as queries, keys and values, so that one product can serve them. In
cross-attention keys and values read the encoder's states, and queries the decoder's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_BLOCK = re.compile(r"(.*?)\.(\d+)\.(.*)")

#: Last names of layers that usually read the same tensor. Whether they do is checked at each call.
_SAME_INPUT = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("query", "key", "value"),
    ("q", "k", "v"),
    ("wi_0", "wi_1"),
)
_IN_CROSS_ATTENTION = (("k_proj", "v_proj"), ("k", "v"))

#: Last names of the modules that are cross-attention, in T5's relatives and in BART's.
CROSS_ATTENTION = ("EncDecAttention", "encoder_attn")


@dataclass(frozen=True, order=True)
class LayerGroup:
    """Layers of one path but for the block's number, and of one shape.

    Attributes:
        path: With `*` for the number.
        inputs: Number of inputs; 0 where it doesn't matter.
        outputs: Number of outputs; 0 where it doesn't matter.
    """

    path: str
    inputs: int
    outputs: int


def group_of(path: str, inputs: int, outputs: int) -> tuple[LayerGroup, int]:
    """A layer's group, and the number of its block; 0 outside of blocks."""
    found = _BLOCK.fullmatch(path)
    if found is None:
        return LayerGroup(path, inputs, outputs), 0
    return LayerGroup(f"{found[1]}.*.{found[3]}", inputs, outputs), int(found[2])


def path_of(group: LayerGroup, block: int) -> str:
    """The path of a group's layer."""
    return group.path.replace("*", str(block), 1)


def with_same_input(groups: Sequence[LayerGroup]) -> list[tuple[LayerGroup, ...]]:
    """Groups that usually read the same tensor put together, in their order."""
    families: dict[tuple[str, int, tuple[str, ...]], list[LayerGroup]] = {}
    for group in groups:
        parent, _, name = group.path.rpartition(".")
        known = _IN_CROSS_ATTENTION if parent.rpartition(".")[2] in CROSS_ATTENTION else _SAME_INPUT
        family = next((names for names in known if name in names), (name,))
        families.setdefault((parent, group.inputs, family), []).append(group)
    return [tuple(family) for family in families.values()]
