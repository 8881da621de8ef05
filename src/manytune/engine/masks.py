"""Which tokens each constrained answer may continue with, computed in a thread while the model runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from torch import Tensor

#: Computes the mask of one answer; None for an answer without a constraint.
Mask = Callable[[], Tensor]


class MaskThread:
    """Computes masks one after another. The grammars' library releases the interpreter's lock, as does the model."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None  # only if there is ever a constraint

    def begin(self, masks: Sequence[Mask | None]) -> Callable[[], list[Tensor | None]]:
        """Start to compute masks.

        Args:
            masks: One for each answer.

        Returns:
            Waits for them, and returns one for each answer: (vocabulary,), bool, or None.
        """
        if not any(masks):
            return lambda: [None] * len(masks)
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="masks")
        return self._thread.submit(lambda: [None if mask is None else mask() for mask in masks]).result
