"""Keys and values of the running sequences, in contiguous slots that are kept compact.

The cache is one block of `budget` tokens, divided into rows of equal width. Decoding sequences have the first rows,
those in prefill the next, and no row in between is free, so that a step reads views, not copies. When a sequence ends,
the last one moves to its row.

Shapes: keys and values of a layer are (rows, key heads, width, head size).
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Widths are multiples of this, so that few sequences make a new division of the block necessary.
WIDTH_MULTIPLE = 64


def row_width(tokens: int) -> int:
    """The width of a row for a sequence of so many tokens."""
    return -(-tokens // WIDTH_MULTIPLE) * WIDTH_MULTIPLE


# Models have keys and values of up to a few hundred.
_BOUND = 32768.0


def bounded(computed: Tensor) -> Tensor:
    """Keys or values that were computed with an adapter, clamped, and with 0 in place of NaN.

    What a sequence leaves in the cache is masked for the next one in its row, but a mask doesn't hide NaN or infinite
    scores. With bounded values an adapter that diverges spoils its own answers only.
    """
    return computed.clamp(-_BOUND, _BOUND).nan_to_num_(0.0)


class KVCache:
    """Keys and values, and which sequence each row belongs to.

    Args:
        layers: Number of layers.
        heads: Heads of keys and values.
        head_dim: Size of a key.
        budget: Capacity in tokens, all rows together.
        max_rows: Largest number of rows.
        dtype: Of keys and values.
        device: Where they are.
    """

    def __init__(
        self,
        *,
        layers: int,
        heads: int,
        head_dim: int,
        budget: int,
        max_rows: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._shape = (layers, 2, heads, head_dim)
        self._budget = budget
        self._max_rows = max_rows
        self._options = {"dtype": dtype, "device": device}
        self._order: list[str] = []  # the sequence in each row
        self._row: dict[str, int] = {}
        self._max_tokens: dict[str, int] = {}
        self._length: dict[str, int] = {}
        self._width = 0
        self._used = 0  # rows that have been used since the last division of the block
        self.decoding = 0
        self._data = self._block(0, 0)

    # -- which sequence has which row

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, sequence: str) -> bool:
        return sequence in self._row

    @property
    def order(self) -> tuple[str, ...]:
        """The sequence in each row; the first `decoding` of them decode."""
        return tuple(self._order)

    def row(self, sequence: str) -> int:
        """The row of a sequence."""
        return self._row[sequence]

    def length(self, sequence: str) -> int:
        """How many tokens of a sequence are there."""
        return self._length[sequence]

    def extend(self, sequence: str, tokens: int) -> None:
        """Note that a forward wrote so many more tokens.

        Raises:
            AssertionError: The sequence has more tokens than were reserved for it.
        """
        self._length[sequence] += tokens
        assert self._length[sequence] <= self._max_tokens[sequence], f"{sequence} outgrew its row"

    def truncate(self, sequence: str, tokens: int) -> None:
        """Forget so many of a sequence's last tokens, whose keys and values the next ones overwrite."""
        assert 0 <= tokens <= self._length[sequence], f"{sequence} has no {tokens} tokens to forget"
        self._length[sequence] -= tokens

    def needed(self, max_tokens: int) -> int:
        """Memory that `add` of such a sequence takes, in bytes; rows are written whole when they are first used."""
        width = row_width(max([max_tokens, *self._max_tokens.values()]))
        layers, two, heads, size = self._shape
        row_bytes = layers * two * heads * size * width * self._data.element_size()
        if width > self._width or len(self._order) == self._data.shape[2]:
            return (len(self._order) + 1) * row_bytes
        return row_bytes if len(self._order) == self._used else 0

    def add(self, sequence: str, max_tokens: int) -> None:
        """Give a new sequence the row after the others, for up to `max_tokens` tokens.

        Mutates: divides the block again if there are too few rows or they are too narrow, which invalidates views taken
        before.
        """
        assert sequence not in self._row, f"{sequence} has a row already"
        needed = row_width(max([max_tokens, *self._max_tokens.values()]))
        if needed > self._width or len(self._order) == self._data.shape[2]:
            self._divide(needed)
        assert len(self._order) < self._data.shape[2], "no row left; the scheduler admitted too many"
        row = len(self._order)
        if row == self._used:
            # Masked positions may hold any number but NaN, which new memory may contain.
            self._data[:, :, row] = 0
            self._used = row + 1
        self._append(sequence, max_tokens)

    def start_decoding(self, sequence: str) -> None:
        """Move a sequence whose prompt has been read to the decoding ones."""
        row, first = self._row[sequence], self.decoding
        assert row >= first, f"{sequence} decodes already"
        if row != first:
            self._exchange(row, first)
            self._place(self._order[first], row)
            self._place(sequence, first)
        self.decoding += 1

    def remove(self, sequence: str) -> None:
        """Free a sequence's row and fill it with the last sequence of its kind, so that no row in between is free."""
        row = self._row.pop(sequence)
        hole = row
        if row < self.decoding:
            self.decoding -= 1
            hole = self._fill(row, self.decoding)
        hole = self._fill(hole, len(self._order) - 1)
        assert hole == len(self._order) - 1
        del self._order[hole], self._max_tokens[sequence], self._length[sequence]

    def check_integrity(self) -> None:
        """Assert that the bookkeeping is consistent."""
        self._check_order()
        assert 0 <= self.decoding <= len(self._order) <= self._data.shape[2] or not self._order
        assert all(self._length[name] <= self._max_tokens[name] <= self._width for name in self._order)
        assert self._data.shape[2] * self._width <= self._budget

    # -- the tensors

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """One layer's keys and values, `(rows, heads, width, head_dim)` each."""
        return self._data[index, 0], self._data[index, 1]

    def read(self, sequence: str, tokens: int) -> Tensor:
        """A copy of the first tokens' keys and values, `(layers, 2, heads, tokens, head_dim)`."""
        return self._data[:, :, self._row[sequence], :, :tokens].clone()

    def write(self, sequence: str, values: Tensor) -> None:
        """Append keys and values that were computed elsewhere, `(layers, 2, heads, tokens, head_dim)`."""
        start = self._length[sequence]
        self.extend(sequence, values.shape[3])
        self._data[:, :, self._row[sequence], :, start : start + values.shape[3]] = bounded(values)

    @property
    def nbytes(self) -> int:
        """Size of the block. The operating system allocates only the pages that were written to."""
        return self._data.numel() * self._data.element_size()

    # -- parts

    def _append(self, sequence: str, max_tokens: int) -> None:
        """Note a new sequence behind the others."""
        self._row[sequence] = len(self._order)
        self._order.append(sequence)
        self._max_tokens[sequence] = max_tokens
        self._length[sequence] = 0

    def _check_order(self) -> None:
        assert {name: row for row, name in enumerate(self._order)} == self._row
        assert self._row.keys() == self._max_tokens.keys() == self._length.keys()
        assert all(self._length[name] <= most for name, most in self._max_tokens.items())

    def _block(self, rows: int, width: int) -> Tensor:
        layers, two, heads, size = self._shape
        return torch.empty((layers, two, rows, heads, width, size), **self._options)  # type: ignore[call-overload,no-any-return]

    def _divide(self, width: int) -> None:
        rows = min(self._max_rows, self._budget // width)
        assert len(self._order) < rows, "the scheduler admitted more than the budget holds"
        old, self._data, self._width = self._data, self._block(rows, width), width
        self._used = len(self._order)
        self._data[:, :, : self._used] = 0
        for name, row in self._row.items():
            self._data[:, :, row, :, : self._length[name]] = old[:, :, row, :, : self._length[name]]

    def _fill(self, hole: int, last: int) -> int:
        """Move the sequence in row `last` to a free row; returns the row that is free then."""
        if hole != last:
            self._move(last, hole)
            self._place(self._order[last], hole)
        return last

    def _exchange(self, row: int, first: int) -> None:
        kept = self._data[:, :, first, :, : self._length[self._order[first]]].clone()
        self._move(row, first)
        self._data[:, :, row, :, : kept.shape[3]] = kept

    def _move(self, source: int, target: int) -> None:
        tokens = self._length[self._order[source]]
        self._data[:, :, target, :, :tokens] = self._data[:, :, source, :, :tokens]

    def _place(self, sequence: str, row: int) -> None:
        self._order[row] = sequence
        self._row[sequence] = row
