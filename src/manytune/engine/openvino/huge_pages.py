"""Memory in pages of 2 MiB where the system has them (Linux's transparent huge pages).

Weights are read once a step from the front to the back. In small pages the processor looks up at each one's end where
the next one is, which takes long on virtual machines.
"""

from __future__ import annotations

import contextlib
import mmap

import numpy as np

#: What is asked for at once; what isn't used of it takes no memory, but for a part of the last page.
_PIECE = 64 * 2**20


class HugePages:
    """Gives memory; a piece of it is free again when none of the arrays in it are used."""

    def __init__(self) -> None:
        self._rest = np.empty(0, np.uint8)

    def copy(self, value: np.ndarray) -> np.ndarray:
        """A copy of some bytes, one after another with those copied before.

        Args:
            value: Bytes, in one dimension.
        """
        if len(value) > len(self._rest):
            piece = mmap.mmap(-1, max(_PIECE, len(value)), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            with contextlib.suppress(OSError):  # of kernels without them
                piece.madvise(mmap.MADV_HUGEPAGE)
            self._rest = np.frombuffer(piece, np.uint8)
        copied, self._rest = self._rest[: len(value)], self._rest[len(value) :]
        copied[...] = value
        return copied
