"""The slow twin of `kernels/sources/fingerprints.cpp`, in whole numbers."""

from __future__ import annotations

import struct

from torch import Tensor

LANES, PIECE = 64, 1 << 18


def fingerprint(tensor: Tensor) -> int:
    """Of a tensor's bytes, as a signed number of 64 bits."""
    values = struct.unpack(f"={tensor.numel()}I", tensor.numpy().tobytes())
    h = 0
    for first in range(0, len(values), PIECE):
        h = _mixed(h, _of_piece(values[first : first + PIECE]))
    return h - (1 << 64) if h >> 63 else h


def _of_piece(values: tuple[int, ...]) -> int:
    whole = len(values) // LANES * LANES
    lanes = list(range(LANES))
    for place, value in enumerate(values[:whole]):
        step = ((lanes[place % LANES] ^ value) * 0x9E3779B1) % (1 << 32)
        lanes[place % LANES] = step ^ (step >> 15)
    h = len(values)
    for value in (*lanes, *values[whole:]):
        h = _mixed(h, value)
    return h


def _mixed(h: int, value: int) -> int:
    h = ((h ^ value) * 0xBF58476D1CE4E5B9) % (1 << 64)
    return h ^ (h >> 29)
