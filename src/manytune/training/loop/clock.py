"""What a run has computed and how long it took, over its interruptions and its processes."""

from __future__ import annotations

import time

from manytune.training.batches import AnyBatch
from manytune.training.distributed.processes import Processes
from manytune.training.loop.counters import Counters
from manytune.training.resume import Position


class Clock:
    """Tokens and seconds since the run began, added up over interruptions; tokens over the processes, too.

    Args:
        position: Where the run goes on; None for its beginning.
        processes: Those that train together.

    Attributes:
        counters: What all processes have computed in the steps that are done.
        step_seconds: Time spent in training steps.
    """

    def __init__(self, position: Position | None, processes: Processes) -> None:
        self.counters = position.counters if position else Counters()
        self.step_seconds = position.step_seconds if position else 0.0
        self._processes = processes
        self._own = Counters()  # of this process, in the step that isn't done
        self._earlier = position.seconds if position else 0.0
        self._started = time.perf_counter()
        self._step_started = self._started

    @property
    def seconds(self) -> float:
        """Time in all."""
        return self._earlier + time.perf_counter() - self._started

    def begin_step(self) -> None:
        """A step begins."""
        self._step_started = time.perf_counter()

    def count(self, batch: AnyBatch, *, skipped: bool) -> None:
        """This process has computed a batch of the step; see `Counters.of`."""
        self._own += Counters.of(batch, skipped=skipped)

    def end_step(self) -> None:
        """The step is done, in every process."""
        self.counters += self._own.over(self._processes)
        self._own = Counters()
        self.step_seconds += time.perf_counter() - self._step_started

    def position(self, step: int) -> Position:
        """How far the run has come, after a step."""
        return Position(step, self.counters, self.step_seconds, self.seconds)
