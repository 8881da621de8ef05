"""Somebody else who uses the server during an attack: is it alive, and are its answers still right?"""

from __future__ import annotations

import statistics
import threading
import time
from types import TracebackType

from tests.attacks.mutation import THOROUGH
from tests.server.api_client import Client

#: Seconds that `/healthz` may take during an attack; more where tests run next to each other.
LONGEST = 0.5 if THOROUGH else 10.0


class Watchdog:
    """Asks for `/healthz` all the time, and now and then for an answer, from a connection of its own.

    Args:
        port: The server's, on this machine.
        models: Who is asked.
    """

    def __init__(self, port: int, models: tuple[str, ...]) -> None:
        self.port = port
        with Client(port) as client:
            self.expected = {model: client.ask(model) for model in models}
        assert all(status == 200 for status, _ in self.expected.values()), self.expected
        self.delays: list[float] = []
        self.answers = 0
        self.wrong: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(120)
        if kind is None:
            self.check()

    def check(self) -> None:
        """Fail if anything was late or wrong, or if nothing was asked."""
        assert not self.wrong, self.wrong[:3]
        assert self.answers and self.delays
        assert max(self.delays) <= LONGEST, f"/healthz took {max(self.delays):.2f} s"

    def summary(self) -> str:
        """One line of what was seen."""
        return (
            f"/healthz {len(self.delays)} times: median {statistics.median(self.delays) * 1e3:.0f} ms, "
            f"longest {max(self.delays) * 1e3:.0f} ms; {self.answers} answers to others, all right"
        )

    def _watch(self) -> None:
        try:
            with Client(self.port) as client:
                while not self._stop.is_set():
                    self._look(client)
                    self._stop.wait(0.02)
        except Exception as error:  # the thread must not end without a word
            self.wrong.append(f"{type(error).__name__}: {error}")

    def _look(self, client: Client) -> None:
        began = time.perf_counter()
        status, _ = client.call("GET", "/healthz")
        self.delays.append(time.perf_counter() - began)
        if status != 200:
            self.wrong.append(f"/healthz: {status}")
        if len(self.delays) % 10 == 1:
            for model, expected in self.expected.items():
                if (found := client.ask(model)) != expected:
                    self.wrong.append(f"{model}: {found} instead of {expected}")
                self.answers += 1
