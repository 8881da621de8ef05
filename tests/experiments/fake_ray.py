"""As much of Ray as the runner uses: actors live here, and are lost as often as a test says."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Any


class FakeRay(types.ModuleType):
    """In place of the module `ray`.

    Args:
        failing_starts: How many calls of `init` fail.
        running: Whether it runs already.
        lost: By a method and its arguments, how many calls of it lose their actor.
        nodes: What the machines offer.
    """

    class exceptions:  # noqa: N801 - Ray's name
        class RayError(Exception):
            pass

        class RayTaskError(RayError):
            pass

        class RayActorError(RayError):
            pass

    def __init__(
        self,
        *,
        failing_starts: int = 0,
        running: bool = False,
        lost: Mapping[tuple[Any, ...], int] | None = None,
        nodes: tuple[Mapping[str, float], ...] = ({"CPU": 2.0},),
    ) -> None:
        super().__init__("ray")
        self.__spec__ = object()
        self.failing_starts, self.running = failing_starts, running
        self.lost = dict(lost or {})
        self.starts = 0
        self.actors: list[_Handle] = []
        self._nodes = nodes

    def is_initialized(self) -> bool:
        return self.running

    def init(self, **_: object) -> None:
        self.starts += 1
        if self.starts <= self.failing_starts:
            raise RuntimeError("Timed out waiting for a port.")
        self.running = True

    def shutdown(self) -> None:
        self.running = False

    def get_runtime_context(self) -> Any:
        return types.SimpleNamespace(
            gcs_address="nowhere.invalid:1"
        )  # a head that can't be watched from here

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": dict(node)} for node in self._nodes]

    def remote(self, **options: object) -> Callable[[type], Any]:
        return lambda cls: types.SimpleNamespace(remote=lambda *a, **k: self._start(options, cls(*a, **k)))

    def _start(self, options: Mapping[str, object], actor: Any) -> _Handle:
        self.actors.append(_Handle(options, actor))
        return self.actors[-1]

    def wait(self, calls: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        return calls[:num_returns], calls[num_returns:]

    def get(self, call: _Call) -> Any:
        if self.lost.get(call.key, 0):
            self.lost[call.key] -= 1
            raise self.exceptions.RayActorError("The actor died.\n\tpid: 7\nIts process was killed.")
        return call.function()

    def kill(self, handle: _Handle) -> None:
        handle.killed = True


class _Call:
    def __init__(self, key: tuple[Any, ...], function: Callable[[], Any]) -> None:
        self.key, self.function = key, function


class _Handle:
    def __init__(self, options: Mapping[str, object], actor: Any) -> None:
        self.options, self._actor, self.killed = options, actor, False

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._actor, name)
        return types.SimpleNamespace(remote=lambda *a: _Call((name, *a), lambda: method(*a)))
