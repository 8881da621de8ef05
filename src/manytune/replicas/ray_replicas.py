"""Replicas of a Ray Serve deployment, as the front asks them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from manytune.replicas.contract import (
    Answer,
    Forwarded,
    Head,
    ReplicaLostError,
    Route,
    WholeAnswer,
    no_replica,
)
from manytune.replicas.placements import PLACEMENTS

_UNKNOWN = "of Ray Serve"


class RayReplicas:
    """An implementation of `Replicas`.

    Args:
        handle: The deployment's handle.
    """

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle: Any = handle

    def states(self) -> dict[str, bool]:
        """See `Replicas`; Ray Serve says nothing of those that don't work."""
        return dict.fromkeys(PLACEMENTS.replicas, True)

    def routed(self) -> Mapping[tuple[str, str], int]:
        """See `Replicas`."""
        return PLACEMENTS.routed

    def restarts(self) -> Mapping[str, int]:
        """See `Replicas`; a replica that Ray Serve starts in another's place has a name of its own."""
        return {}

    @asynccontextmanager
    async def ask(self, request: Forwarded, route: Route) -> AsyncIterator[Answer]:
        """See `Replicas`."""
        parts = self._handle.options(stream=True).answer.remote(request, route)
        try:
            try:
                head = await anext(parts)
            except (RayError, RayServeException, StopAsyncIteration) as error:
                raise ReplicaLostError(_UNKNOWN, type(error).__name__) from error
            yield _Answer(head, parts)
        finally:
            parts.cancel()

    async def ask_all(self, request: Forwarded) -> Sequence[WholeAnswer]:
        """See `Replicas`."""
        answers = await self._answers(request)
        if not answers:
            raise no_replica()
        return answers

    async def ask_each(self, request: Forwarded, *, seconds: float) -> Sequence[WholeAnswer]:
        """See `Replicas`. One that hangs is waited for until Ray Serve, which checks their health, has ended it."""
        return await self._answers(request)

    def repeat_for_later(self, what: str, request: Forwarded | None) -> None:
        """See `Replicas`. Ray Serve starts replicas without asking the front, so they know of no pins."""

    async def _answers(self, request: Forwarded) -> list[WholeAnswer]:
        found = await self._handle.broadcast("whole", request).results_async(return_exceptions=True)
        answers = [one for one in found if isinstance(one, WholeAnswer)]
        return sorted(answers, key=lambda one: one.replica)


class _Answer:
    def __init__(self, head: Head, parts: Any) -> None:
        self.replica, self.status, self.headers = head.replica, head.status, head.headers
        self._parts = parts

    async def chunks(self) -> AsyncIterator[bytes]:
        """See `Answer`."""
        try:
            async for part in self._parts:
                yield part
        except (RayError, RayServeException) as error:
            raise ReplicaLostError(self.replica, type(error).__name__) from error
