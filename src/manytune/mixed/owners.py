"""Which adapter each token of a forward belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class Owners:
    """The adapters of a forward's tokens, by their digests; None for the base alone.

    Layers may see other numbers of tokens than the model's input has. A layer that sees a multiple of them sees so many
    rows for each, one after the other: beams of a sample, positions of a sample, heads of a token. The output head may
    see some of them only.

    Attributes:
        single: The adapter of each token at the forward's beginning: those that decode, or one for each sample.
        chunks: Adapters of the tokens behind them, a slice of neighbours each.
        kept: Indices of the tokens that the output head reads; None for all.
    """

    single: tuple[str | None, ...]
    chunks: tuple[tuple[str | None, slice], ...] = ()
    kept: tuple[int, ...] | None = None

    @property
    def digests(self) -> set[str]:
        """All adapters."""
        named = (*self.single, *(digest for digest, _ in self.chunks))
        return {digest for digest in named if digest is not None}

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return self.chunks[-1][1].stop if self.chunks else len(self.single)

    def of(self, rows: int) -> tuple[Sequence[str | None], Sequence[tuple[str | None, slice]]]:
        """The adapters of the rows that a layer sees, as `single` and `chunks`.

        Raises:
            ValueError: The number of rows is neither a multiple of the tokens nor that of the head's.
        """
        tokens = self.tokens
        if rows == tokens:
            return self.single, self.chunks
        if self.kept is not None and rows == len(self.kept):
            return [self._owner(token) for token in self.kept], ()
        times, left = divmod(rows, tokens)
        if left:
            raise ValueError(f"a layer sees {rows} rows in a forward of {tokens} tokens")
        single = [digest for digest in self.single for _ in range(times)]
        return single, [(digest, slice(s.start * times, s.stop * times)) for digest, s in self.chunks]

    def _owner(self, token: int) -> str | None:
        if token < len(self.single):
            return self.single[token]
        return next(digest for digest, rows in self.chunks if rows.start <= token < rows.stop)
