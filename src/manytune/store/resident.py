"""An adapter in memory: its options, and its tensors as views into the mapped file.

A mapped file costs memory only for the pages that were read, and these the system may drop and read again. One
adapter is one mapping, whatever the number of its tensors; which views there are is worked out once for all adapters of
the same shape, and a view is made when it is asked for.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from manytune.errors import DamagedError
from manytune.methods.checkpoint.format import TENSORS_NAME
from manytune.methods.config import CONFIG_NAME, PeftConfig
from manytune.store.adapters import check_base, open_adapter
from manytune.store.digests import digest_of, digest_of_files
from manytune.store.fingerprint import Fingerprint
from manytune.store.manifest import Manifest

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class ResidentAdapter:
    """An adapter that is ready to run. Nothing in it may be changed: others hold the same one.

    Attributes:
        digest: Identifies its content. Equal digests mean equal answers on the same base.
        config: Its options.
        tensors: Its tensors by their names in HF PEFT's file, in their own dtype.
        nbytes: The size of the tensors.
        manifest: What it says about itself, the prompt template included; None for a checkpoint of HF PEFT that is in
            no store.
    """

    digest: str
    config: PeftConfig
    tensors: Mapping[str, Tensor]
    nbytes: int
    manifest: Manifest | None

    @property
    def templates(self) -> Mapping[str | None, Mapping[str, str]]:
        """The parts of the prompt template of each task; a single task's are under None."""
        return {} if self.manifest is None else self.manifest.templates_by_task


@dataclass(frozen=True)
class _Place:
    """Where a tensor is in the part of a file that holds tensors; `start` and `size` in bytes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    start: int
    size: int


class MappedTensors(Mapping[str, Tensor]):
    """The tensors of a safetensors file, mapped into memory and read only.

    Args:
        path: The file. It must not be cut off or overwritten in place while this lives; removing or replacing it does
            no harm.

    Raises:
        DamagedError: It isn't a whole safetensors file.
    """

    __slots__ = ("_data_start", "_places", "_storage", "nbytes")

    def __init__(self, path: Path) -> None:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = file.read(length) if length < size else b""
        try:
            self._places, self.nbytes = _layout(header)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedError(
                f"{path}: this isn't a safetensors file; it may have been cut off ({error})."
            ) from None
        self._data_start = 8 + length
        if self._data_start + self.nbytes != size:
            raise DamagedError(
                f"{path}: expected {self._data_start + self.nbytes:,} bytes, found {size:,}; it may have been cut off."
            )
        # Private: what is written to a view by mistake never reaches the file.
        self._storage: Any = torch.UntypedStorage.from_file(str(path), False, size)

    def __getitem__(self, name: str) -> Tensor:
        place = self._places[name]
        start = self._data_start + place.start
        if start % place.dtype.itemsize:
            # Written by something that doesn't align its header; tensors must begin at multiples of their items.
            raw: Tensor = torch.empty(0, dtype=torch.uint8).set_(self._storage, start, (place.size,), (1,))
            return raw.clone().view(place.dtype).view(place.shape)
        return torch.empty(0, dtype=place.dtype).set_(
            self._storage, start // place.dtype.itemsize, place.shape, place.stride
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def read_resident(directory: str | Path, *, fingerprint: Fingerprint | None = None) -> ResidentAdapter:
    """Map an adapter into memory, after checking its files against its manifest.

    Args:
        directory: The adapter's directory.
        fingerprint: The base that it is to run on; None leaves that to the caller.

    Raises:
        StoreError: The directory holds no adapter.
        DamagedError: It holds a damaged one.
        BaseMismatchError: The adapter was trained on another base.
    """
    stored = open_adapter(directory)
    manifest = stored.manifest
    if manifest is not None:
        if fingerprint is not None:
            check_base(stored.path, manifest, fingerprint)
        digest = digest_of(manifest)
    else:
        digest = digest_of_files(stored.path / CONFIG_NAME, stored.path / TENSORS_NAME)
    tensors = MappedTensors(stored.path / TENSORS_NAME)
    return ResidentAdapter(digest, PeftConfig.from_pretrained(stored.path), tensors, tensors.nbytes, manifest)


@lru_cache(maxsize=64)
def _layout(header: bytes) -> tuple[Mapping[str, _Place], int]:
    """A header's tensors as places, and the bytes that they take; many adapters have the very same header."""
    described: Any = json.loads(header)
    places = {}
    for name, entry in described.items():
        if name == "__metadata__":
            continue
        dtype, shape, (start, end) = _DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
        if end - start != math.prod(shape) * dtype.itemsize or start < 0:
            raise ValueError(f"{name}: {end - start} bytes for {entry['dtype']} of shape {shape}")
        stride = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
        places[name] = _Place(dtype, shape, stride, start, end - start)
    return places, max((place.start + place.size for place in places.values()), default=0)
