"""A set of encoded examples as one file: safetensors with a SHA-256 over everything in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from manytune.data.encoding.encoded import Encoded, EncodedSet
from manytune.data.records import Rejected
from manytune.errors import DamagedError

_TEXTS, _HASH = "texts", "sha256"
_LISTS = ("prompt_ids", "completion_ids", "given")
_NUMBERS = ("rows", "sources", "groups", "follows")

Arrays = Mapping[str, NDArray[Any]]


def to_bytes(encoded: EncodedSet) -> bytes:
    """The content of a file.

    Token ids are joined into one array each, with another of their lengths; texts are JSON in an array of bytes.
    """
    kept = encoded.kept
    sources, groups = _Numbering(), _Numbering()
    arrays: dict[str, NDArray[Any]] = {
        "rows": np.array([one.row for one in kept], dtype=np.int64),
        "sources": np.array([sources.of(one.source) for one in kept], dtype=np.int64),
        "groups": np.array([groups.of(one.group) for one in kept], dtype=np.int64),
        "follows": np.array([one.follows for one in kept], dtype=np.int64),
    }
    for name, lists in (
        ("prompt_ids", [one.prompt_ids for one in kept]),
        ("completion_ids", [one.completion_ids for one in kept]),
        ("given", [[end for span in one.given for end in span] for one in kept]),
    ):
        arrays[name] = np.array([number for numbers in lists for number in numbers], dtype=np.int32)
        arrays[f"{name}.lengths"] = np.array([len(numbers) for numbers in lists], dtype=np.int64)
    texts = {
        "sources": sources.values,
        "groups": groups.values,
        "dropped": [[one.source, one.row, one.reason] for one in encoded.dropped],
        "truncated": encoded.truncated,
        "turns_dropped": encoded.turns_dropped,
    }
    arrays[_TEXTS] = np.frombuffer(json.dumps(texts).encode(), dtype=np.uint8)
    digest = np.frombuffer(_digest(arrays), dtype=np.uint8)
    return bytes(save({**arrays, _HASH: digest}))


def from_bytes(content: bytes, *, where: str) -> EncodedSet:
    """What `to_bytes` was given.

    Raises:
        DamagedError: A bit of it isn't what was written.
    """
    try:
        arrays = load(content)
        digest = arrays.pop(_HASH).tobytes()
    except (SafetensorError, KeyError) as error:
        raise DamagedError(f"{where}: not a file of encoded rows ({error}).") from None
    if digest != _digest(arrays):
        raise DamagedError(f"{where}: its content isn't what was written; its SHA-256 differs.")
    texts = json.loads(arrays[_TEXTS].tobytes())
    prompts, completions, given = (_divided(arrays, name) for name in _LISTS)
    rows, sources, groups, follows = (arrays[name].tolist() for name in _NUMBERS)
    kept = tuple(
        Encoded(
            prompt,
            completion,
            texts["sources"][source],
            row,
            texts["groups"][group],
            tuple(zip(spans[::2], spans[1::2], strict=True)),
            bool(follow),
        )
        for prompt, completion, source, row, group, spans, follow in zip(
            prompts, completions, sources, rows, groups, given, follows, strict=True
        )
    )
    dropped = tuple(Rejected(source, row, reason) for source, row, reason in texts["dropped"])
    return EncodedSet(kept, dropped, texts["truncated"], texts["turns_dropped"])


class _Numbering:
    """Gives each different value a number, in the order in which they come."""

    def __init__(self) -> None:
        self._numbers: dict[str | None, int] = {}

    def of(self, value: str | None) -> int:
        return self._numbers.setdefault(value, len(self._numbers))

    @property
    def values(self) -> list[str | None]:
        return list(self._numbers)


def _divided(arrays: Arrays, name: str) -> Iterator[tuple[int, ...]]:
    numbers: Sequence[int] = arrays[name].tolist()
    ends = accumulate(arrays[f"{name}.lengths"].tolist(), initial=0)
    return (tuple(numbers[start:end]) for start, end in pairwise(ends))


def _digest(arrays: Arrays) -> bytes:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.digest()
