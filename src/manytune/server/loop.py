"""The one thread that owns the engine, and the streams that carry its outputs to the web server's event loop.

Requests, cancellations and questions come in through one queue. Between two steps the thread does all that has come;
after a step the outputs go to their streams, with one wake-up of the event loop for all of them.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from manytune.engine.counters import Counters
from manytune.engine.request import Output, Request
from manytune.errors import ManytuneError
from manytune.methods.tuners.terms import Adapter
from manytune.server.http_errors import Refusal, full

_log = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")


class AnyEngine(Protocol):
    """What a loop uses of an `Engine`; an `EncoderEngine` has it, too."""

    @property
    def busy(self) -> bool: ...  # noqa: D102

    @property
    def adapters(self) -> tuple[str, ...]: ...  # noqa: D102

    def add_adapter(self, name: str, adapter: Adapter) -> None: ...  # noqa: D102

    def remove_adapter(self, name: str) -> bool: ...  # noqa: D102

    def submit(self, request: Request) -> None: ...  # noqa: D102

    def cancel(self, request_id: str) -> Output | None: ...  # noqa: D102

    def step(self) -> list[Output]: ...  # noqa: D102

    def counters(self) -> Counters: ...  # noqa: D102


class Stream:
    """The outputs of some requests in the order in which they come. Belongs to the event loop that asked."""

    def __init__(self, owner: EngineLoop) -> None:
        self._owner = owner
        self._open: set[str] = set()
        self._events: asyncio.Queue[Output | BaseException | None] = asyncio.Queue()

    async def __aiter__(self) -> AsyncIterator[Output]:
        while self._open:
            event = await self._events.get()
            if isinstance(event, BaseException):
                raise event
            if event is None:  # closed
                return
            if event.finish_reason is not None:
                self._open.discard(event.request_id)
            yield event

    def close(self) -> None:
        """Give up the requests that haven't ended; their places are free after the present step."""
        for request_id in self._open:
            self._owner._give_up(request_id)
        self._open.clear()
        self._events.put_nowait(None)

    def _expect(self, request_ids: Iterable[str]) -> None:
        self._open.update(request_ids)

    def _put(self, event: Output | BaseException) -> None:
        self._events.put_nowait(event)


@dataclass(frozen=True)
class Asked:
    """A request with its adapter, which it names by the hash of its content."""

    request: Request
    adapter: Adapter | None


@dataclass(frozen=True)
class _Submit:
    asked: Sequence[Asked]
    stream: Stream
    accepted: Future[None]


@dataclass(frozen=True)
class _Cancel:
    request_id: str


@dataclass(frozen=True)
class _Call:
    run: Callable[[Any], object]
    result: Future[Any]


class EngineLoop:
    """Runs an engine in a thread of its own.

    Args:
        engine: Nobody else may use it from now on.
        max_running: Requests that the engine runs at once.
        max_queue: Requests that may wait beside them.

    Attributes:
        failure: What the engine failed with; it can't go on after that.
        on_failure: Called then, in the engine's thread.
        counters: The engine's, after the last step.
    """

    def __init__(self, engine: AnyEngine, *, max_running: int, max_queue: int) -> None:
        self._engine = engine
        self._places = max_running + max_queue
        self._commands: queue.SimpleQueue[_Submit | _Cancel | _Call | None] = queue.SimpleQueue()
        self._streams: dict[str, Stream] = {}  # of the engine's thread
        self._open: set[str] = set()  # of the event loop
        self._event_loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._stopping = False
        self._over = False
        self.failure: BaseException | None = None
        self.on_failure: Callable[[], None] = lambda: None
        self.counters: Counters = engine.counters()

    # -- for the event loop

    def start(self) -> None:
        """Begin; called on the event loop that will ask."""
        self._event_loop = asyncio.get_running_loop()
        self._thread.start()

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken."""
        return self._thread.is_alive() and self.failure is None and not self._stopping

    @property
    def open_requests(self) -> int:
        """Requests that wait or run."""
        return len(self._open)

    def check_room(self, requests: int = 1) -> None:
        """See that so many more requests fit.

        Raises:
            Refusal: 429 if they don't; 503 if the server is stopping or the engine has failed.
        """
        if not self.is_ready:
            raise Refusal(503, "the server is stopping or its engine has failed.", code="unavailable")
        if len(self._open) + requests > self._places:
            raise full()

    async def submit(self, asked: Sequence[Asked], stream: Stream) -> None:
        """Let requests wait for their turn, all of them or none. They begin together if there is room.

        Args:
            asked: The requests.
            stream: Takes their outputs.

        Raises:
            Refusal: There is no room; see `check_room`.
            ManytuneError: The engine refuses one.
        """
        self.check_room(len(asked))
        accepted: Future[None] = Future()
        ids = [one.request.id for one in asked]
        self._open.update(ids)
        self._command(_Submit(asked, stream, accepted))
        try:
            await asyncio.wrap_future(accepted)
        except asyncio.CancelledError:
            for request_id in ids:
                self._give_up(request_id)
            raise
        except BaseException:
            self._open.difference_update(ids)
            raise
        stream._expect(ids)

    async def call(self, run: Callable[[Any], _Answer]) -> _Answer:
        """Do something with the engine between two of its steps."""
        result: Future[Any] = Future()
        self._command(_Call(run, result))
        answer: _Answer = await asyncio.wrap_future(result)
        return answer

    async def ask(self, run: Callable[[Any], _Answer]) -> _Answer:
        """The same for a client, who takes a place like a request.

        Raises:
            Refusal: There is no room; see `check_room`.
            ManytuneError: The engine refuses.
        """
        self.check_room()
        place = uuid.uuid4().hex
        self._open.add(place)
        try:
            return await self.call(run)
        finally:
            self._open.discard(place)

    async def stop(self, *, patience: float) -> None:
        """Take no more requests, let the open ones end for so many seconds, then cancel the rest."""
        self._stopping = True
        end = asyncio.get_running_loop().time() + patience
        while self._open and self.failure is None and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.02)
        self._commands.put(None)
        await asyncio.to_thread(self._thread.join)

    def _command(self, command: _Submit | _Call) -> None:
        self._commands.put(command)
        if self._over:  # the engine's thread may have looked for the last time
            self._refuse_commands()

    def _give_up(self, request_id: str) -> None:
        self._commands.put(_Cancel(request_id))

    def _deliver(self, events: list[tuple[Stream, str, Output | BaseException]]) -> None:
        for stream, request_id, event in events:
            if isinstance(event, BaseException) or event.finish_reason is not None:
                self._open.discard(request_id)
            stream._put(event)

    # -- for the engine's thread

    def _run(self) -> None:
        try:
            while self._do_commands():
                outputs = self._engine.step()
                self.counters = self._engine.counters()
                self._send([(self._streams[o.request_id], o.request_id, o) for o in outputs])
                for output in outputs:
                    if output.finish_reason is not None:
                        del self._streams[output.request_id]
        except BaseException as error:
            _log.exception("the engine has failed; the server must be started again")
            self.failure = error
        self._send([(stream, name, _stopped()) for name, stream in self._streams.items()])
        self._streams.clear()
        self._over = True
        self._refuse_commands()
        if self.failure is not None:
            self.on_failure()

    def _do_commands(self) -> bool:
        """Do all that has come; wait for something if there is nothing to compute. False to stop."""
        while True:
            try:
                command = self._commands.get(block=not self._engine.busy)
            except queue.Empty:
                return True
            if command is None:
                return False
            if isinstance(command, _Submit):
                self._submit(command)
            elif isinstance(command, _Cancel):
                self._cancel(command.request_id)
            else:
                _answer(command, self._engine)
            self.counters = self._engine.counters()

    def _submit(self, command: _Submit) -> None:
        if not command.accepted.set_running_or_notify_cancel():
            return  # whoever asked has gone, and the cancellation follows
        submitted: list[str] = []
        try:
            for one in command.asked:
                if one.adapter is not None and one.adapter.id not in self._engine.adapters:
                    self._engine.add_adapter(one.adapter.id, one.adapter)
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
            self._send([(stream, request_id, last)])
        elif self._event_loop is not None and not self._event_loop.is_closed():
            self._event_loop.call_soon_threadsafe(self._open.discard, request_id)

    def _refuse_commands(self) -> None:
        with suppress(queue.Empty):
            while True:
                command = self._commands.get_nowait()
                future: Future[Any] | None = None
                if isinstance(command, _Submit):
                    future = command.accepted
                elif isinstance(command, _Call):
                    future = command.result
                if future is not None and future.set_running_or_notify_cancel():
                    future.set_exception(_stopped())

    def _send(self, events: list[tuple[Stream, str, Output | BaseException]]) -> None:
        if events and self._event_loop is not None and not self._event_loop.is_closed():
            self._event_loop.call_soon_threadsafe(self._deliver, events)


def _answer(command: _Call, engine: AnyEngine) -> None:
    if not command.result.set_running_or_notify_cancel():
        return
    try:
        command.result.set_result(command.run(engine))
    except (ManytuneError, Refusal) as error:
        command.result.set_exception(error)
    except BaseException:
        command.result.set_exception(_stopped())
        raise


def _stopped() -> Refusal:
    return Refusal(503, "the server stopped before the answer was complete.", code="unavailable")
