"""Batches laid out in a thread of their own, while the model computes on the ones before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

import torch

from manytune.data.encoding.encoded import Encoded
from manytune.training.batches import AnyBatch


@dataclass(frozen=True)
class PendingBatch:
    """A batch that may still be in the making.

    Attributes:
        rows: Where its rows come from, for error messages.
        targets: Number of target tokens, which is known before the layout is.
        future: The batch on the CPU; None if it has no rows.
        device: Where it is wanted; None for the CPU.
    """

    rows: tuple[str, ...]
    targets: int
    future: Future[AnyBatch] | None
    device: torch.device | str | None = None

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> PendingBatch:
        """The same batch, wanted on another device. Waits for nothing."""
        del non_blocking
        return replace(self, device=device)

    def get(self) -> AnyBatch | None:
        """Wait for the batch and move it to its device; None if it has no rows.

        Raises:
            DataError: What building it raised.
        """
        if self.future is None:
            return None
        batch = self.future.result()
        return batch if self.device is None else batch.to(self.device)


class BackgroundBuilder:
    """Builds batches in the order in which they are asked for, one at a time. No random number is drawn there.

    Use it in a `with` block; at its end, nothing is running any more.

    Args:
        build: Builds a batch.
    """

    def __init__(self, build: Callable[[Sequence[Encoded]], AnyBatch]) -> None:
        self._build = build
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="manytune-batches")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(cancel_futures=True)

    def __call__(self, sequences: Sequence[Encoded]) -> PendingBatch:
        """Ask for a batch of these sequences; on several processes there may be none for this one."""
        return PendingBatch(
            tuple(f"{sequence.source}:{sequence.row}" for sequence in sequences),
            sum(sequence.targets for sequence in sequences),
            self._thread.submit(self._build, sequences) if sequences else None,
        )
