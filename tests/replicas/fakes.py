"""Replicas without processes: each answers what a test says, or is lost."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from manytune.replicas.contract import (
    Facts,
    Forwarded,
    ReplicaLostError,
    Route,
    WholeAnswer,
    no_replica,
    read_whole,
)
from manytune.replicas.router import Router

FACTS = Facts(base_name="base", store="store", adapters=2, max_body_bytes=10_000, max_choices=16)
DIGESTS = {"one": "d1", "two": "d2"}


@dataclass
class FakeAnswer:
    replica: str
    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    parts: list[bytes]
    is_lost: bool = False

    async def chunks(self) -> AsyncIterator[bytes]:
        for part in self.parts:
            yield part
        if self.is_lost:
            raise ReplicaLostError(self.replica, "it ended")


def whole(content: Any, status: int = 200) -> FakeAnswer:
    return FakeAnswer("", status, ((b"content-type", b"application/json"),), [json.dumps(content).encode()])


def text(content: str, status: int = 200) -> FakeAnswer:
    return FakeAnswer("", status, ((b"content-type", b"text/plain"),), [content.encode()])


def stream(*parts: str, is_lost: bool = False) -> FakeAnswer:
    encoded = [part.encode() for part in parts]
    return FakeAnswer("", 200, ((b"content-type", b"text/event-stream; charset=utf-8"),), encoded, is_lost)


@dataclass
class FakeReplicas:
    """Attributes: what each replica answers to each request, the requests that each got, and which don't work."""

    answer: Callable[[str, Forwarded], FakeAnswer | None]
    names: tuple[str, ...] = ("0", "1")
    asked: list[tuple[str, Forwarded]] = field(default_factory=list)
    down: set[str] = field(default_factory=set)
    hanging: set[str] = field(default_factory=set)
    repeated: dict[str, Forwarded] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.router = Router(self.names)

    def states(self) -> dict[str, bool]:
        return {name: name not in self.down for name in self.names}

    def routed(self) -> Counter[tuple[str, str]]:
        return self.router.routed

    def restarts(self) -> dict[str, int]:
        return {"0": 3}

    @asynccontextmanager
    async def ask(self, request: Forwarded, route: Route) -> AsyncIterator[FakeAnswer]:
        with self.router.placed(route, [name for name, works in self.states().items() if works]) as name:
            yield self._answer(name, request)

    async def ask_all(self, request: Forwarded) -> list[WholeAnswer]:
        working = [name for name, works in self.states().items() if works]
        if not working:
            raise no_replica()
        return [await read_whole(self._answer(name, request)) for name in working]

    async def ask_each(self, request: Forwarded, *, seconds: float) -> list[WholeAnswer]:
        working = [name for name, works in self.states().items() if works and name not in self.hanging]
        return [await read_whole(self._answer(name, request)) for name in working]

    def repeat_for_later(self, what: str, request: Forwarded | None) -> None:
        self.repeated.pop(what, None)
        if request is not None:
            self.repeated[what] = request

    def _answer(self, name: str, request: Forwarded) -> FakeAnswer:
        self.asked.append((name, request))
        answer = self.answer(name, request)
        if answer is None:
            raise ReplicaLostError(name, "it ended")
        answer.replica = name
        return answer
