"""What the front needs of replicas, wherever they run: processes of this machine, or actors of a cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from manytune.server.http_errors import HttpError

if TYPE_CHECKING:
    from manytune.server.opening import Opened


#: Headers of a connection, not of an answer; and the date, which the front's own server gives.
OF_CONNECTIONS = frozenset({b"connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"date"})


class ReplicaLostError(Exception):
    """A replica ended, or can't be reached, before its answer was complete.

    Args:
        replica: Its name.
        reason: What happened.
    """

    def __init__(self, replica: str, reason: str) -> None:
        super().__init__(f"replica {replica}: {reason}")
        self.replica = replica


@dataclass(frozen=True)
class Forwarded:
    """A request as a replica gets it.

    Attributes:
        method: Of HTTP.
        target: The path with its query, as the client sent them.
        headers: Those that the replica looks at.
        body: All of it.
    """

    method: str
    target: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


@dataclass(frozen=True)
class Route:
    """Where a request is to go.

    Attributes:
        key: What its replica follows from; None for the first one that works.
        weight: The load that it adds: its answers.
        lost: The replicas that it was lost by.
    """

    key: str | None = None
    weight: int = 1
    lost: frozenset[str] = field(default_factory=frozenset)

    def without(self, replica: str) -> Route:
        """The same after a replica has lost the request."""
        return replace(self, lost=self.lost | {replica})


@dataclass(frozen=True)
class Head:
    """An answer's beginning.

    Attributes:
        replica: Whose it is.
        status: Of HTTP.
        headers: Without those that concern a connection.
    """

    replica: str
    status: int
    headers: tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True)
class WholeAnswer(Head):
    """An answer that is complete.

    Attributes:
        body: All of it.
    """

    body: bytes


class Answer(Protocol):
    """An answer that has begun, with what `Head` has."""

    replica: str
    status: int
    headers: tuple[tuple[bytes, bytes], ...]

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it is written.

        Raises:
            ReplicaLostError: The replica ended before that.
        """


@dataclass(frozen=True)
class Facts:
    """What a front has to know of what its replicas serve.

    Attributes:
        base_name: The plain base's name in requests.
        store: The store that they read: its directory, or its URL.
        adapters: How many adapters it had when they started.
        max_body_bytes: Size of the largest request body.
        max_choices: Largest number of answers to one request.
    """

    base_name: str
    store: str
    adapters: int
    max_body_bytes: int
    max_choices: int

    @classmethod
    def of(cls, opened: Opened) -> Facts:
        """What a replica says of itself."""
        return cls(
            base_name=opened.base_name,
            store=opened.store.address,
            adapters=len(opened.store.names()),
            max_body_bytes=opened.max_body_bytes,
            max_choices=opened.max_choices,
        )


class Replicas(Protocol):
    """The replicas of a server. To be used on one event loop."""

    def states(self) -> dict[str, bool]:
        """Each replica's name, and whether it takes requests."""

    def routed(self) -> Mapping[tuple[str, str], int]:
        """Requests by replica and by how it was chosen; see `Router`."""

    def restarts(self) -> Mapping[str, int]:
        """How often each replica was started again."""

    def ask(self, request: Forwarded, route: Route) -> AbstractAsyncContextManager[Answer]:
        """Send a request to the replica that it belongs to. Leaving the block before the answer's end cancels it.

        Raises:
            ReplicaLostError: The replica ended before it answered, or can't be reached.
            HttpError: There is none; see `no_replica`.
        """

    async def ask_all(self, request: Forwarded) -> Sequence[WholeAnswer]:
        """The answers of all replicas that take requests, the first one's before the others are asked.

        Raises:
            HttpError: There is none; see `no_replica`.
        """

    async def ask_each(self, request: Forwarded, *, seconds: float) -> Sequence[WholeAnswer]:
        """What replicas answer within some seconds, all asked at once: of one that hangs or ends there is nothing."""

    def repeat_for_later(self, what: str, request: Forwarded | None) -> None:
        """Have replicas that start from now on get a request before any other, as those that run have had it.

        Args:
            what: Takes the place of what was to be repeated under this name.
            request: The request; None for nothing any more.
        """


async def read_whole(answer: Answer) -> WholeAnswer:
    """An answer when it is complete.

    Raises:
        ReplicaLostError: The replica ended before that.
    """
    body = b"".join([chunk async for chunk in answer.chunks()])
    return WholeAnswer(answer.replica, answer.status, answer.headers, body)


def no_replica() -> HttpError:
    """No replica takes requests now."""
    return HttpError(503, "no replica of the server takes requests now.", code="unavailable", retry_after=1)
