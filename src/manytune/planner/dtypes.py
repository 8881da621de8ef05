"""Bytes of weights, by how they are kept."""

from __future__ import annotations

from typing import Literal

from manytune.planner.architecture import Architecture

Kept = Literal["float32", "bfloat16", "float8", "int8", "nf4"]
"""How a base's weights are kept. `nf4` packs linear layers into 4 bits, `int8` and `float8` into 8."""

BYTES: dict[str, float] = {"float32": 4, "bfloat16": 2, "float8": 1}

#: Bytes of a packed weight. 4 bits, and for each 64 of them a constant of 8 bits, whose own constants are of 32 bits
#: for each 256: 4.127 bits (Dettmers et al., "QLoRA", arXiv 2305.14314, section 3, double quantization).
PACKED: dict[str, float] = {
    "nf4": (4 + 8 / 64 + 32 / (64 * 256)) / 8,
    "int8": 1 + 4 / 4096,
    "float8": 1 + 4 / 4096,
}


def weight_bytes(model: Architecture, kept: str) -> float:
    """Bytes of a base. Embedding, head and norms of a packed one stay in bfloat16."""
    if kept in PACKED:
        packed = model.layer_weights
        return packed * PACKED[kept] + (model.parameters - packed) * BYTES["bfloat16"]
    return model.parameters * BYTES[kept]


def product_dtype(kept: str) -> str:
    """The dtype of products with such weights: packed ones are unpacked first, but for 8-bit floats."""
    return kept if kept in BYTES else "bfloat16"


def layer_bytes(model: Architecture, kept: str) -> float:
    """Bytes of the blocks' matrices alone, which a step reads at least once."""
    return model.layer_weights * (PACKED[kept] if kept in PACKED else BYTES[kept])
