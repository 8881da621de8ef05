"""Trials among Ray's actors: each runs one after the other, and a trial whose actor is lost goes to another."""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from manytune.errors import RunError
from manytune.experiments.failures import Failure
from manytune.experiments.ray_connection import HeadLostError
from manytune.experiments.ray_worker import Opened

TRIES = 3
"""A trial, or opening the experiment, is given up when so many processes that did it were lost."""
_LOOK = 5.0  # seconds without news, after which it is looked whether the head is there
_PATIENCE = 12  # looks without a worker, after which a line says what is waited for
_LONGEST_REASON = 200


@dataclass
class _Worker:
    """An actor.

    Attributes:
        actor: Its handle.
        where: Its machine and GPU; None while it opens the experiment.
        trial: The trial that it runs; None if it runs none.
    """

    actor: Any
    where: str | None = None
    trial: int | None = None


@dataclass
class RayTrials:
    """Gets trials done by actors.

    Attributes:
        start: Starts an actor of `RayWorker`.
        workers: How many there may be at once.
        names: The trials, in the order of the workers' list.
        say: Called with what happens, in words for people.
        require_head: Raises `HeadLostError` if Ray's head is gone.
        failed: The trials that failed, by name.
    """

    start: Callable[[], Any]
    workers: int
    names: Sequence[str]
    say: Callable[[str], None]
    require_head: Callable[[], None] = lambda: None
    failed: dict[str, Failure] = field(default_factory=dict)
    _waiting: deque[int] = field(default_factory=deque)
    _calls: dict[Any, _Worker] = field(default_factory=dict)
    _losses: Counter[int] = field(default_factory=Counter)
    _lost_opening: int = 0
    _done: int = 0

    def run(self) -> None:
        """Run all of them, those that fail included; the actors end with it.

        Raises:
            RunError: No worker can open the experiment.
            HeadLostError: Ray's head is gone.
        """
        import ray

        self._waiting = deque(range(len(self.names)))
        try:
            self._fill()
            looks = 0
            while self._done < len(self.names):
                ready, _ = ray.wait(list(self._calls), num_returns=1, timeout=_LOOK)
                looks = 0 if ready else looks + 1
                if ready:
                    self._ended(self._calls.pop(ready[0]), ready[0])
                    continue
                self.require_head()
                if looks % _PATIENCE == 0 and all(worker.where is None for worker in self._calls.values()):
                    self.say("waiting for the cluster: no worker has opened the experiment yet")
        except HeadLostError:
            self._calls.clear()  # nobody is there who would end them
            raise
        finally:
            for worker in self._calls.values():
                ray.kill(worker.actor)

    def _fill(self) -> None:
        """Start workers while trials wait for one, and may have one."""
        opening = sum(worker.where is None for worker in self._calls.values())
        for _ in range(min(self.workers - len(self._calls), len(self._waiting) - opening)):
            worker = _Worker(self.start())
            self._calls[worker.actor.open.remote()] = worker

    def _ended(self, worker: _Worker, call: Any) -> None:
        """A call returned, or its worker was lost."""
        import ray

        try:
            found = ray.get(call)
        except ray.exceptions.RayActorError as error:
            self.require_head()  # else another worker would be waited for in vain
            self._lost(worker, _reason(error))
            return
        if isinstance(found, Opened):
            if found.error is not None:
                ray.kill(worker.actor)
                raise RunError(f"{found.where}: {found.error}")
            worker.where = found.where
        else:
            self._finished(worker, found)
        if self._waiting:
            worker.trial = self._waiting.popleft()
            self.say(f"{self.names[worker.trial]} on {worker.where}")
            self._calls[worker.actor.run.remote(worker.trial)] = worker
        else:
            ray.kill(worker.actor)  # its GPU is wanted by others

    def _finished(self, worker: _Worker, error: str | None) -> None:
        assert worker.trial is not None
        name, worker.trial = self.names[worker.trial], None
        self._done += 1
        if error is not None:
            self.failed[name] = Failure(error)
        count = f"{self._done} of {len(self.names)}"
        self.say(f"{name} is done ({count})" if error is None else f"{name} failed ({count}): {error}")

    def _lost(self, worker: _Worker, reason: str) -> None:
        """Give its trial to another, unless that was done often enough."""
        import ray

        ray.kill(worker.actor)  # it may only be out of reach
        if worker.trial is None:
            self._lost_opening += 1
            self.say(f"a worker was lost while it opened the experiment: {reason}")
            if self._lost_opening < TRIES:
                self._fill()
            elif not self._calls:
                raise RunError(
                    f"{TRIES} workers were lost while they opened the experiment; the last: {reason}"
                )
            return
        self._losses[worker.trial] += 1
        name, times = self.names[worker.trial], self._losses[worker.trial]
        what = f"the worker of {name} on {worker.where} was lost"
        if times < TRIES:
            self._waiting.appendleft(worker.trial)
            self.say(f"{what}; retry {times} of {TRIES - 1}: {reason}")
        else:
            self._done += 1
            self.failed[name] = Failure(
                f"{times} workers that ran it were lost, the last on {worker.where}: {reason}", times
            )
            self.say(f"{what}, as {TRIES - 1} before, so it is given up; the others go on: {reason}")
        self._fill()


def _reason(error: Exception) -> str:
    """Ray's explanation without its list of ids and of remedies, on one line."""
    lines = [line for line in str(error).splitlines() if not re.match(r"\s+\w+: ", line)]
    text = " ".join(" ".join(lines[1:] or lines).split())
    return text if len(text) <= _LONGEST_REASON else text[:_LONGEST_REASON] + " ..."
