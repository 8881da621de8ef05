from __future__ import annotations

import http.client
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest
from tests.server.conftest import base, client, own_store, store  # noqa: F401 - fixtures

from manytune.engine.engine import Engine

#: Seconds; where tests run next to each other, also twenty times what an idle server takes, and never less than two.
_FREEZE = 0.5
_IS_THOROUGH = "MANYTUNE_CASES" in os.environ


def _seconds(port: int) -> float:
    began = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/healthz")
    assert connection.getresponse().status == 200
    connection.close()
    return time.perf_counter() - began


@pytest.fixture
def watched() -> Callable[[int], object]:
    """A context in which `/healthz` of a port has to answer at once; what an idle server takes is measured before."""

    @contextmanager
    def watch(port: int) -> Iterator[None]:
        idle = max(_seconds(port) for _ in range(3))
        allowed = _FREEZE if _IS_THOROUGH else max(4 * _FREEZE, 20 * idle)
        slowest, is_over = [0.0], threading.Event()

        def look() -> None:
            while not is_over.is_set():
                with suppress(ConnectionResetError):  # it made place for others before its request was there
                    slowest.append(_seconds(port))
                is_over.wait(0.02)

        looking = threading.Thread(target=look)
        looking.start()
        try:
            yield
        finally:
            is_over.set()
            looking.join()
        assert max(slowest) <= allowed

    return watch


@pytest.fixture
def slow_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine takes its time, so that a queue builds up."""
    step = Engine.step

    def slow(engine: Engine) -> object:
        time.sleep(0.005)
        return step(engine)

    monkeypatch.setattr(Engine, "step", slow)
