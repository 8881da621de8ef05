"""The workers of this machine: started, started again when they end, and asked through their sockets.

The first worker keeps the store in step with what is served, if that is a directory of adapters; the others read the
store. Each resolves an adapter's name when it is asked, so a new version serves from the next request on, whichever
worker gets it. A store on shared storage is followed by each of them, as by a single server.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from manytune.errors import ServeError
from manytune.replicas.contract import (
    Answer,
    Facts,
    Forwarded,
    ReplicaLostError,
    Route,
    WholeAnswer,
    no_replica,
    read_whole,
)
from manytune.replicas.process import Worker
from manytune.replicas.router import Router
from manytune.replicas.unix_client import UnixClient
from manytune.replicas.worker import Order
from manytune.server.opening import ServeOptions
from manytune.store.remote.location import is_url

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """How soon a worker that has ended is started again: twice as late each time, until one has lasted.

    Attributes:
        first: Seconds before the first time.
        most: Seconds at most.
        lasting: Seconds after which a worker counts as one that works.
    """

    first: float = 0.5
    most: float = 30.0
    lasting: float = 60.0

    def delay(self, failures: int) -> float:
        """Seconds to wait after so many workers in a row that didn't last."""
        return float(min(self.most, self.first * 2.0 ** (failures - 1)))


class Workers:
    """The workers of a server; an implementation of `Replicas`. To be used on one event loop.

    Args:
        options: What each serves.
        secret: What the front proves itself with; None on a server without keys.
        count: How many.
        threads: Over how many cores each spreads its products.
        folder: A directory for their sockets that only this user can enter; removed at the end.
        backoff: How soon those that end are started again.
    """

    def __init__(
        self,
        options: ServeOptions,
        secret: str | None,
        *,
        count: int,
        threads: int,
        folder: Path,
        backoff: Backoff | None = None,
    ) -> None:
        names = [str(number) for number in range(count)]
        self._threads = threads
        self._folder = folder
        self._backoff = backoff or Backoff()
        self._orders = {
            name: Order(number, str(folder / name), options, secret, None)
            for number, name in enumerate(names)
        }
        self._clients = {name: UnixClient(name, folder / name) for name in names}
        self._running: dict[str, Worker] = {}
        self._keeping: list[asyncio.Task[None]] = []
        self._repeated: dict[str, Forwarded] = {}
        self._router = Router(names)
        self._restarts: Counter[str] = Counter()

    async def start(self) -> Facts:
        """Start all of them; the first one alone, which may have to convert the base, and says what there is.

        Raises:
            ServeError: One couldn't start; none is left running.
        """
        first, *others = self._orders
        try:
            facts = await self._start(first)
            if not is_url(facts.store):  # else each asks the storage itself
                self._orders |= {name: replace(self._orders[name], store=facts.store) for name in others}
            async with asyncio.TaskGroup() as starting:
                for name in others:
                    starting.create_task(self._start(name))
        except BaseExceptionGroup as errors:
            await self.stop()
            raise errors.exceptions[0] from None
        except BaseException:
            await self.stop()
            raise
        self._keeping = [asyncio.create_task(self._keep(name)) for name in self._orders]
        return facts

    async def stop(self) -> None:
        """Let running answers end, and end all workers."""
        for task in self._keeping:
            task.cancel()
        for task in self._keeping:
            with suppress(asyncio.CancelledError):
                await task
        await asyncio.gather(*(worker.end() for worker in self._running.values()))
        self._running.clear()
        for client in self._clients.values():
            await client.aclose()
        shutil.rmtree(self._folder, ignore_errors=True)

    def pids(self) -> dict[str, int]:
        """The process of each worker that runs."""
        return {name: worker.pid for name, worker in self._running.items()}

    # -- as `Replicas`

    def states(self) -> dict[str, bool]:
        """See `Replicas`."""
        return {name: name in self._running for name in self._orders}

    def routed(self) -> Mapping[tuple[str, str], int]:
        """See `Replicas`."""
        return self._router.routed

    def restarts(self) -> Mapping[str, int]:
        """See `Replicas`."""
        return self._restarts

    @asynccontextmanager
    async def ask(self, request: Forwarded, route: Route) -> AsyncIterator[Answer]:
        """See `Replicas`."""
        with self._router.placed(route, self._running) as name:
            async with self._clients[name].ask(request) as answer:
                yield answer

    async def ask_all(self, request: Forwarded) -> Sequence[WholeAnswer]:
        """See `Replicas`."""
        first, others = sorted(self._running, key=int)[:1], sorted(self._running, key=int)[1:]
        found = [await self._whole(name, request) for name in first]
        found += await asyncio.gather(*(self._whole(name, request) for name in others))
        answers = [one for one in found if one is not None]
        if not answers:
            raise no_replica()
        return answers

    async def ask_each(self, request: Forwarded, *, seconds: float) -> Sequence[WholeAnswer]:
        """See `Replicas`."""
        found = await asyncio.gather(
            *(self._within(seconds, name, request) for name in sorted(self._running, key=int))
        )
        return [one for one in found if one is not None]

    def repeat_for_later(self, what: str, request: Forwarded | None) -> None:
        """See `Replicas`."""
        self._repeated.pop(what, None)
        if request is not None:
            self._repeated[what] = request

    # -- parts

    async def _whole(self, name: str, request: Forwarded) -> WholeAnswer | None:
        """A worker's answer; None if it ended meanwhile: another one that starts in its place knows nothing yet."""
        try:
            async with self._clients[name].ask(request) as answer:
                return await read_whole(answer)
        except ReplicaLostError as error:
            _log.warning("%s; %s %s has no answer of it", error, request.method, request.target)
            return None

    async def _within(self, seconds: float, name: str, request: Forwarded) -> WholeAnswer | None:
        """The same; None, too, if it takes longer."""
        try:
            async with asyncio.timeout(seconds):
                return await self._whole(name, request)
        except TimeoutError:
            _log.warning("worker %s didn't answer %s within %g s", name, request.target, seconds)
            return None

    async def _start(self, name: str) -> Facts:
        worker = await Worker.start(self._orders[name], threads=self._threads)
        for request in self._repeated.values():
            answer = await self._whole(name, request)
            if answer is None or answer.status >= 400:
                _log.warning("worker %s could not repeat %s %s", name, request.method, request.target)
        self._running[name] = worker
        _log.info("a worker has started", extra={"fields": {"replica": name, "pid": worker.pid}})
        return worker.facts

    async def _keep(self, name: str) -> None:
        """Start a worker again whenever it has ended."""
        failures = 0
        clock = asyncio.get_running_loop().time
        since = clock()
        while True:
            if name in self._running:
                how = await self._running[name].wait()
                del self._running[name]
                if clock() - since >= self._backoff.lasting:
                    failures = 0
            failures += 1
            delay = self._backoff.delay(failures)
            fields = {"replica": name, "how": how, "again_in_seconds": delay}
            _log.error("a worker has ended; another is started in its place", extra={"fields": fields})
            await asyncio.sleep(delay)
            since = clock()
            self._restarts[name] += 1
            try:
                await self._start(name)
            except (ServeError, OSError) as error:
                how = f"couldn't start: {error}"
            except Exception as error:
                _log.exception("a worker couldn't be started")
                how = f"couldn't start: {type(error).__name__}: {error}"
