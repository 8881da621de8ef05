"""The thread that runs the engine, and the streams that carry its outputs to the web server's event loop.

Requests, cancellations and calls arrive through one queue. Between two steps the thread handles all that have arrived;
after a step the outputs go to their streams, with one wake-up of the event loop for all of them. Those of answers that
clients get whole wait for the end of one, or for `HELD_SECONDS`, since each wake-up takes time from the next step.
Texts to embed or to classify take turns with the engine: one bounded batch of them after each of its steps.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from manytune.engine.counters import Counters
from manytune.engine.request import Output, Request
from manytune.engine.text_runner import TextJob, TextRunner
from manytune.errors import ManytuneError
from manytune.free_memory import naming_short_memory
from manytune.methods.tuners.terms import Adapter, Terms
from manytune.server.any_engine import AnyEngine, ensure_adapter
from manytune.server.http_errors import HttpError
from manytune.server.streams import Event, Stream

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")

#: For so long outputs of answers that clients get whole may wait: until then, metrics don't have them.
HELD_SECONDS = 0.1
#: For so long an idle engine waits for requests that arrive with the first, so that their prompts are read together.
GATHERED_SECONDS = 0.005


@dataclass(frozen=True)
class Submission:
    """A request with its adapter.

    Attributes:
        request: The request; its `adapter` is the digest.
        adapter: The adapter, or None.
        terms: The adapter's terms for the base, if they have been computed.
    """

    request: Request
    adapter: Adapter | None = None
    terms: Terms | None = None


@dataclass(frozen=True)
class _Submit:
    submissions: Sequence[Submission]
    stream: Stream
    accepted: Future[None]


@dataclass(frozen=True)
class _Cancel:
    request_id: str


@dataclass(frozen=True)
class _Call:
    run: Callable[[Any], object]
    result: Future[Any]


@dataclass(frozen=True)
class _Texts:
    runner: TextRunner
    job: TextJob


@dataclass(frozen=True)
class _Forget:
    runner: TextRunner
    job: TextJob


class EngineLoop:
    """Runs an engine in a thread of its own.

    Args:
        engine: The engine; nothing else may use it from now on.

    Attributes:
        failure: The exception that the engine failed with; it has stopped then.
        on_failure: Called after a failure, in the engine's thread.
        counters: The engine's counters after the last step.
    """

    def __init__(self, engine: AnyEngine) -> None:
        self._engine = engine
        self._runners: list[TextRunner] = []  # those that were ever used; by the engine's thread only
        self._commands: queue.SimpleQueue[_Submit | _Cancel | _Call | _Texts | _Forget | None] = (
            queue.SimpleQueue()
        )
        self._streams: dict[str, Stream] = {}  # used by the engine's thread only
        self._held: list[Event] = []  # in their order; used by the engine's thread only
        self._open: set[str] = set()  # used by the event loop only
        self._arriving: set[object] = set()  # changed by the event loop only
        self._event_loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._stopping = False
        self._ended = False
        self.failure: BaseException | None = None
        self.on_failure: Callable[[], None] = lambda: None
        self.counters: Counters = engine.counters()

    # -- for the event loop

    def start(self) -> None:
        """Start the thread; to be called on the event loop that will submit requests."""
        self._event_loop = asyncio.get_running_loop()
        self._thread.start()

    @property
    def is_ready(self) -> bool:
        """Whether requests are accepted."""
        return self._thread.is_alive() and self.failure is None and not self._stopping

    @property
    def open_requests(self) -> int:
        """Requests that wait or run."""
        return len(self._open)

    def check_ready(self) -> None:
        """Check that requests are accepted.

        Raises:
            HttpError: 503 if the server is stopping or the engine has failed.
        """
        if not self.is_ready:
            raise HttpError(503, "the server is stopping or its engine has failed.", code="unavailable")

    def stream(self, *, is_whole: bool = False) -> Stream:
        """A stream for requests; see there."""
        return Stream(self._cancel_later, is_whole=is_whole)

    @contextmanager
    def arriving(self) -> Iterator[object]:
        """Requests are being prepared in this context, and `submit` will get what it yields, or none will come."""
        arrival = object()
        self._arriving.add(arrival)
        try:
            yield arrival
        finally:
            self._arriving.discard(arrival)

    async def submit(self, submissions: Sequence[Submission], stream: Stream, arrival: object = None) -> None:
        """Put requests into the engine's queue, all of them or none. They begin in the same step if they fit.

        Args:
            submissions: The requests.
            stream: Gets their outputs.
            arrival: See `arriving`.

        Raises:
            HttpError: They can't be accepted now; see `check_ready`.
            ManytuneError: The engine refuses one.
        """
        self.check_ready()
        accepted: Future[None] = Future()
        ids = [one.request.id for one in submissions]
        self._open.update(ids)
        self._arriving.discard(arrival)
        self._command(_Submit(submissions, stream, accepted))
        try:
            await asyncio.wrap_future(accepted)
        except asyncio.CancelledError:
            for request_id in ids:
                self._cancel_later(request_id)
            raise
        except BaseException:
            self._open.difference_update(ids)
            raise
        stream.expect(ids)

    async def call(self, run: Callable[[Any], _Result]) -> _Result:
        """Call a function with the engine between two of its steps."""
        result: Future[Any] = Future()
        self._command(_Call(run, result))
        returned: _Result = await asyncio.wrap_future(result)
        return returned

    async def read_texts(self, runner: TextRunner, job: TextJob) -> list[list[float]]:
        """Have texts read; none of a job that is cancelled meanwhile are read any more.

        Args:
            runner: What reads them, in the engine's thread.
            job: The texts.

        Raises:
            HttpError: They can't be accepted now; see `check_ready`.
            ManytuneError: They can't be read.
        """
        self.check_ready()
        request_id = uuid.uuid4().hex
        self._open.add(request_id)
        self._command(_Texts(runner, job))
        try:
            return await asyncio.wrap_future(job.result)
        finally:
            self._open.discard(request_id)
            if not job.result.done():
                self._commands.put(_Forget(runner, job))

    async def stop(self, *, patience: float) -> None:
        """Accept no more requests, wait up to `patience` seconds for the open ones, then cancel the rest."""
        self._stopping = True
        end = asyncio.get_running_loop().time() + patience
        while self._open and self.failure is None and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.02)
        self._commands.put(None)
        await asyncio.to_thread(self._thread.join)

    def _command(self, command: _Submit | _Call | _Texts) -> None:
        self._commands.put(command)
        if self._ended:  # the engine's thread may have read the queue for the last time
            self._refuse_commands()

    def _cancel_later(self, request_id: str) -> None:
        self._commands.put(_Cancel(request_id))

    def _deliver(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event.what, BaseException) or event.what.finish_reason is not None:
                self._open.discard(event.request_id)
            event.stream.put(event)

    # -- for the engine's thread

    def _run(self) -> None:
        try:
            while self._do_commands():
                outputs = self._engine.step() if self._engine.busy else []
                self.counters = self._engine.counters()
                self._send_outputs(outputs)
                for runner in self._runners:
                    if runner.busy:
                        runner.step()
                        self.counters = self._engine.counters()
        except BaseException as error:
            _log.exception("the engine has failed; the server must be started again")
            self.failure = error
        now = time.perf_counter()
        self._send([Event(stream, name, _stopped(), now) for name, stream in self._streams.items()])
        self._streams.clear()
        for runner in self._runners:
            for job in runner.jobs:
                job.result.set_exception(_stopped())
        self._ended = True
        self._refuse_commands()
        if self.failure is not None:
            self.on_failure()

    def _do_commands(self) -> bool:
        """Handle all commands in the queue; wait for one if there is nothing to compute. False to stop."""
        was_idle, gathered_until = not self._engine.busy, 0.0
        while True:
            is_busy = self._engine.busy or any(runner.busy for runner in self._runners)
            if is_busy and was_idle and not gathered_until:
                gathered_until = time.monotonic() + GATHERED_SECONDS
            try:
                if is_busy and was_idle and self._arriving:
                    command = self._commands.get(timeout=max(0.0, gathered_until - time.monotonic()))
                else:
                    command = self._commands.get(block=not is_busy)
            except queue.Empty:
                return True
            if command is None:
                return False
            if isinstance(command, _Submit):
                self._submit(command)
            elif isinstance(command, _Cancel):
                self._cancel(command.request_id)
            elif isinstance(command, _Texts):
                self._add_texts(command)
            elif isinstance(command, _Forget):
                command.runner.forget(command.job)
            else:
                _call(command, self._engine)
            self.counters = self._engine.counters()

    def _submit(self, command: _Submit) -> None:
        if not command.accepted.set_running_or_notify_cancel():
            return  # the submitter was cancelled; it cancels the requests too
        submitted: list[str] = []
        try:
            for one in command.submissions:
                with naming_short_memory("the request"):
                    ensure_adapter(self._engine, one.adapter, one.terms)
                    self._engine.submit(one.request)
                submitted.append(one.request.id)
        except ManytuneError as error:
            for request_id in submitted:
                self._engine.cancel(request_id)
            command.accepted.set_exception(error)
            return
        except BaseException:
            command.accepted.set_exception(_stopped())
            raise
        self._streams.update(dict.fromkeys(submitted, command.stream))
        command.accepted.set_result(None)

    def _cancel(self, request_id: str) -> None:
        last = self._engine.cancel(request_id)
        stream = self._streams.pop(request_id, None)
        if last is not None and stream is not None:
            self._send([Event(stream, request_id, last, time.perf_counter())])
        elif self._event_loop is not None and not self._event_loop.is_closed():
            self._event_loop.call_soon_threadsafe(self._open.discard, request_id)

    def _add_texts(self, command: _Texts) -> None:
        if command.runner not in self._runners:
            self._runners.append(command.runner)
        try:
            command.runner.add(command.job)
        except BaseException:
            if command.job not in command.runner.jobs:  # those get it at the end
                command.job.result.set_exception(_stopped())
            raise

    def _refuse_commands(self) -> None:
        with suppress(queue.Empty):
            while True:
                command = self._commands.get_nowait()
                future: Future[Any] | None = None
                if isinstance(command, _Submit):
                    future = command.accepted
                elif isinstance(command, _Call):
                    future = command.result
                elif isinstance(command, _Texts):
                    future = command.job.result
                if future is not None and future.set_running_or_notify_cancel():
                    future.set_exception(_stopped())

    def _send_outputs(self, outputs: Sequence[Output]) -> None:
        """Send outputs of a step to their streams, or hold those that nobody waits for yet."""
        now = time.perf_counter()
        events = [Event(self._streams[one.request_id], one.request_id, one, now) for one in outputs]
        ended = [one.request_id for one in outputs if one.finish_reason is not None]
        for request_id in ended:
            del self._streams[request_id]
        self._held += [one for one in events if one.stream.is_whole]
        if ended or (self._held and now - self._held[0].at >= HELD_SECONDS):
            self._send([one for one in events if not one.stream.is_whole])
        else:
            self._wake([one for one in events if not one.stream.is_whole])

    def _send(self, events: list[Event]) -> None:
        """Send what is held, and then these."""
        held, self._held = self._held, []
        self._wake(held + events)

    def _wake(self, events: list[Event]) -> None:
        if events and self._event_loop is not None and not self._event_loop.is_closed():
            self._event_loop.call_soon_threadsafe(self._deliver, events)


def _call(command: _Call, engine: AnyEngine) -> None:
    if not command.result.set_running_or_notify_cancel():
        return
    try:
        with naming_short_memory("the request"):
            result = command.run(engine)
        command.result.set_result(result)
    except (ManytuneError, HttpError) as error:
        command.result.set_exception(error)
    except BaseException:
        command.result.set_exception(_stopped())
        raise


def _stopped() -> HttpError:
    return HttpError(503, "the server stopped before the answer was complete.", code="unavailable")
