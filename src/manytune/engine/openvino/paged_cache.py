"""Keys and values in pages, as OpenVINO's attention reads and writes them.

A sequence has its pages from its admission to its end, wherever they are, so that none is ever moved. The tensors are
shared with OpenVINO without copying.

Shapes: keys and values of a layer are (pages, key heads, PAGE, head size).
"""

from __future__ import annotations

import torch
from torch import Tensor

from manytune.engine.kv_cache import KVCache, bounded
from manytune.engine.openvino.graph import PAGE


class PagedCache(KVCache):
    """Keys and values in pages, and the order of the sequences.

    Args:
        layers: Number of layers.
        heads: Heads of keys and values.
        head_dim: Size of a key.
        budget: Capacity in tokens.
        dtype: Of keys and values.
    """

    def __init__(
        self, *, layers: int, heads: int, head_dim: int, budget: int, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(
            layers=layers,
            heads=heads,
            head_dim=head_dim,
            budget=budget,
            max_rows=0,
            dtype=dtype,
            device=torch.device("cpu"),
        )
        # The system gives memory to those pages only that are written to.
        self._data = torch.empty((layers, 2, budget // PAGE, heads, PAGE, head_dim), dtype=dtype)
        self._free = list(reversed(range(budget // PAGE)))
        self._touched = 0  # pages below this have been used
        self._pages: dict[str, list[int]] = {}

    @property
    def dtype(self) -> torch.dtype:
        """Of keys and values."""
        return self._data.dtype

    @property
    def layers(self) -> int:
        """Number of layers."""
        return self._shape[0]

    def pages(self, sequence: str) -> list[int]:
        """The pages of a sequence, in the order of its tokens."""
        return self._pages[sequence]

    def needed(self, max_tokens: int) -> int:
        """See `KVCache.needed`: the pages that haven't been used before."""
        reused = len(self._free) - (self._data.shape[2] - self._touched)
        page_bytes = self._data[:, :, :1].numel() * self._data.element_size()
        return max(0, _pages_for(max_tokens) - reused) * page_bytes

    def add(self, sequence: str, max_tokens: int) -> None:
        """Give a new sequence pages for up to `max_tokens` tokens, and the row after the others."""
        assert sequence not in self._row, f"{sequence} has a row already"
        count = _pages_for(max_tokens)
        assert count <= len(self._free), "no pages left; the scheduler admitted too many"
        pages = [self._free.pop() for _ in range(count)]
        self._touched = max(self._touched, 1 + max(pages))
        self._pages[sequence] = pages
        self._append(sequence, max_tokens)

    def remove(self, sequence: str) -> None:
        """See `KVCache.remove`; nothing is moved but the order."""
        super().remove(sequence)
        self._free.extend(reversed(self._pages.pop(sequence)))

    def read(self, sequence: str, tokens: int) -> Tensor:
        """See `KVCache.read`."""
        found = self._data[
            :, :, self._pages[sequence][: _pages_for(tokens)]
        ]  # (layers, 2, pages, heads, PAGE, size)
        return found.transpose(2, 3).flatten(3, 4)[:, :, :, :tokens].contiguous()

    def write(self, sequence: str, values: Tensor) -> None:
        """See `KVCache.write`."""
        start = self._length[sequence]
        count = values.shape[3]
        self.extend(sequence, count)
        positions = torch.arange(start, start + count)
        pages = torch.tensor(self._pages[sequence])[positions // PAGE]
        given = bounded(values).to(self.dtype)
        self._data[:, :, pages, :, positions % PAGE] = given.permute(3, 0, 1, 2, 4)

    def check_integrity(self) -> None:
        """Assert that the bookkeeping is consistent."""
        self._check_order()
        used = [page for pages in self._pages.values() for page in pages]
        assert sorted((*used, *self._free)) == list(range(self._data.shape[2]))
        assert self._pages.keys() == self._row.keys()
        assert all(PAGE * len(self._pages[name]) >= tokens for name, tokens in self._max_tokens.items())

    def _move(self, source: int, target: int) -> None:
        """Pages stay where they are."""

    def _exchange(self, row: int, first: int) -> None:
        """Pages stay where they are."""


def _pages_for(tokens: int) -> int:
    return -(-tokens // PAGE)
