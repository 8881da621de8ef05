"""An adapter's tensors, read from its file into memory.

They aren't mapped from the file: a mapping follows whatever is written to the file later, and when the file is cut
off, the system ends the process that reads from the mapping.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from manytune.errors import DamagedError
from manytune.free_memory import naming_short_memory, require_memory
from manytune.store.tensor_header import read_header

# Read and hashed in parts that stay in the processor's cache.
_PART = 1 << 20

#: Those of torch by their names in a file of safetensors.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class TensorsInMemory(Mapping[str, Tensor]):
    """The tensors of a safetensors file; what happens to the file afterwards doesn't concern them.

    Args:
        path: The file.
        state: A hash that is updated with all bytes that were read; they are the file's.

    Attributes:
        nbytes: What they take in memory: the tensors, their names and places.

    Raises:
        DamagedError: It isn't a whole safetensors file, or was changed while it was read.
        ShortMemoryError: There isn't enough memory for it now.
    """

    __slots__ = ("_data", "_places", "nbytes")

    def __init__(self, path: Path, state: hashlib._Hash | None = None) -> None:
        with path.open("rb") as file:
            header = read_header(file, path)
            self._places = header.places
            self.nbytes = header.nbytes + header.kept_bytes
            what = f"{path}: reading the adapter"
            require_memory(self.nbytes, what)
            with naming_short_memory(what):
                self._data = torch.empty(header.nbytes, dtype=torch.uint8)
            if state is not None:
                state.update(header.beginning)
            content = self._data.numpy().data
            for start in range(0, header.nbytes, _PART):
                part = content[start : start + _PART]
                if file.readinto(part) != len(part):
                    raise _changed(path)
                if state is not None:
                    state.update(part)
            if file.read(1):
                raise _changed(path)

    def __getitem__(self, name: str) -> Tensor:
        place = self._places[name]
        dtype = DTYPES[place.dtype]
        storage = self._data.untyped_storage()
        if place.start % dtype.itemsize:
            # Behind one of narrower numbers; tensors must begin at multiples of their items.
            raw = self._data[place.start : place.start + place.size]
            return raw.clone().view(dtype).view(place.shape)
        return torch.empty(0, dtype=dtype).set_(
            storage, place.start // dtype.itemsize, place.shape, place.stride
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _changed(path: Path) -> DamagedError:
    return DamagedError(
        f"{path}: the file was changed while it was read. Restore it, or add the adapter again."
    )
