"""The header of a safetensors file, which says where its tensors are: bounded before it is parsed, and checked.

A file is 8 bytes with the header's length, the header, and the tensors, one after another without gaps.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from manytune.errors import DamagedError

#: The longest header in bytes, and what of it any file may have for the metadata, and for each of its tensors.
MOST_BYTES = 16 << 20
_FOR_METADATA, _FOR_TENSOR = 1 << 20, 1 << 10

# What Python keeps of a tensor's entry, in bytes: its name, its place, and an entry in a dictionary.
_KEPT_OF_TENSOR = 512
# Headers up to this length are kept for further files with the very same one.
_SHARED_BYTES = 128 << 10

#: Bytes of a number of each type.
_SIZES = {
    **{"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "C64": 8, "BOOL": 1},
    **{"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1},
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor is in the part of a file that holds tensors; `start` and `size` in bytes, `dtype` as it says."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int

    @property
    def stride(self) -> tuple[int, ...]:
        """Elements from one index to the next, by dimension."""
        return tuple(math.prod(self.shape[i + 1 :]) for i in range(len(self.shape)))


@dataclass(frozen=True)
class Header:
    """A file's header.

    Attributes:
        beginning: The file's bytes before its tensors.
        places: Its tensors by name.
        nbytes: Bytes of the tensors.
    """

    beginning: bytes
    places: Mapping[str, Place]
    nbytes: int

    @property
    def kept_bytes(self) -> int:
        """About the memory that names and places take."""
        return len(self.beginning) + _KEPT_OF_TENSOR * len(self.places)


def read_header(file: BinaryIO, path: Path) -> Header:
    """Read the header of a safetensors file, and check that it fits the file's size to the byte.

    Args:
        file: The file, open at its beginning; afterwards its tensors are next.
        path: Its name, for the message.

    Raises:
        DamagedError: It isn't a whole safetensors file, or its header is longer than so many tensors need.
    """
    state = os.fstat(file.fileno())
    if not stat.S_ISREG(state.st_mode):
        raise DamagedError(f"{path}: expected a plain file. Restore it, or add the adapter again.")
    length = int.from_bytes(file.read(8), "little")
    if 8 + length > state.st_size:
        raise _cut_off(path, f"it has {state.st_size:,} bytes, and its header would end at {8 + length:,}")
    if length > MOST_BYTES:
        raise DamagedError(
            f"{path}: the header has {length:,} bytes; expected at most {MOST_BYTES:,}. Save the adapter again."
        )
    text = file.read(length)
    try:
        places, nbytes = (_shared_layout if length <= _SHARED_BYTES else _layout)(text)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _cut_off(path, f"{type(error).__name__}: {str(error)[:200]}") from None
    most = _FOR_METADATA + _FOR_TENSOR * len(places)
    if length > most:
        raise DamagedError(
            f"{path}: the header has {length:,} bytes for {len(places):,} tensors; expected at most {most:,}. Save the "
            "adapter again, without metadata."
        )
    if 8 + length + nbytes != state.st_size:
        raise _cut_off(path, f"expected {8 + length + nbytes:,} bytes, found {state.st_size:,}")
    return Header(length.to_bytes(8, "little") + text, places, nbytes)


def _layout(header: bytes) -> tuple[Mapping[str, Place], int]:
    """A header's tensors as places, and the bytes that they take."""
    described: Any = json.loads(header)
    places = {}
    for name, entry in described.items():
        if name == "__metadata__":
            continue
        dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        if not all(type(number) is int and number >= 0 for number in (*shape, start, end)):
            raise ValueError(f"{name[:100]}: sizes and offsets that aren't whole numbers")
        if end - start != math.prod(shape) * _SIZES[dtype]:
            raise ValueError(f"{name[:100]}: {end - start} bytes for {dtype} of shape {shape}")
        places[name] = Place(dtype, shape, start, end - start)
    end = 0
    for place in sorted(places.values(), key=lambda place: (place.start, place.size)):
        if place.start != end:
            raise ValueError(f"tensors overlap or leave a gap at byte {end:,}")
        end += place.size
    return places, end


_shared_layout = lru_cache(maxsize=16)(_layout)


def _cut_off(path: Path, why: str) -> DamagedError:
    return DamagedError(
        f"{path}: not a readable safetensors file; it may have been cut off ({why}). Restore it, or add the adapter "
        "again."
    )
