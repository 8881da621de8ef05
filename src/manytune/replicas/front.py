"""The application in front of replicas: the same routes as theirs, each request answered by the right one.

It checks the key, counts what the key is limited to, once for all replicas, and reads of a request what decides its
replica. The rest it passes on as it came: replicas check it as a single server does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from manytune.replicas.affinity import Asked, read_body
from manytune.replicas.contract import Facts, Forwarded, Replicas, Route, WholeAnswer
from manytune.replicas.forwarding import forward, send_whole
from manytune.replicas.metrics import FrontMetrics
from manytune.replicas.operators import ask_all, is_for_all, loaded_adapter
from manytune.replicas.vouching import vouch
from manytune.server.access.auth import Keys, Visit
from manytune.server.disconnects import unless_disconnected
from manytune.server.http_errors import HttpError
from manytune.server.middleware import LOGGED_BY_REPLICA, RequestMiddleware

#: What replicas look at. All else is of the client's connection, or of no use to them.
_PASSED_ON = frozenset({"accept", "content-type", "host", "origin", "sec-fetch-site", "user-agent"})
_DISCONNECTED = 499
_PATIENCE = 2.0  # seconds for which a replica is waited for that is asked how it is
_TARGET = re.compile(r"/[!-~]*")


class Front:
    """The application, without the middleware.

    Args:
        replicas: Who answers.
        facts: What they serve.
        digest_of: The digest of the adapter that has a name now.
        metrics: Counts what clients get.
        secret: What it proves to the replicas that it is the front; None on a server without keys.
    """

    def __init__(
        self,
        replicas: Replicas,
        facts: Facts,
        digest_of: Callable[[str], str | None],
        metrics: FrontMetrics,
        secret: str | None,
    ) -> None:
        self._replicas = replicas
        self._facts = facts
        self._digest_of = digest_of
        self._metrics = metrics
        self._secret = secret

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, whose body arrives in one message."""
        http = Request(scope, receive)
        try:
            body = (await receive())["body"]
            await unless_disconnected(http, self._answer(http, body, send))
        except HttpError as error:
            if error.status != _DISCONNECTED:
                response = JSONResponse(error.body(), error.status, error.headers)
                await response(scope, receive, send)

    async def _answer(self, http: Request, body: bytes, send: Send) -> None:
        path, method = http.scope["path"], http.method
        request = self._forwarded(http, body)
        if path in ("/healthz", "/readyz", "/metrics") and method in ("GET", "HEAD"):
            response = await self._state(path, request)
            await response(http.scope, http.receive, send)
            return
        if is_for_all(method, path):
            await send_whole(await ask_all(self._replicas, request, path), send)
            return
        asked = read_body(path, body) if method == "POST" else None
        if asked is not None:
            self._count(http.scope["state"]["visit"], asked)
        log_fields = http.scope["state"]["log_fields"]
        log_fields[LOGGED_BY_REPLICA] = True  # also if the client hangs up: the replica notices, and logs it
        try:
            if not await forward(self._replicas, request, self._route(method, path, asked), send):
                del log_fields[LOGGED_BY_REPLICA]
        except HttpError:
            del log_fields[LOGGED_BY_REPLICA]
            raise

    def _forwarded(self, http: Request, body: bytes) -> Forwarded:
        """A request as a replica gets it.

        Raises:
            HttpError: 404 if its path can't be one.
        """
        scope = http.scope
        target = scope.get("raw_path", scope["path"].encode()).decode("latin-1")
        if query := scope.get("query_string"):
            target += "?" + query.decode("latin-1")
        if not _TARGET.fullmatch(target):
            raise HttpError(404, "there is no such URL.", code="unknown_url")
        headers = [pair for pair in Headers(scope=scope).items() if pair[0] in _PASSED_ON]
        headers.append(("x-request-id", scope["state"]["log_fields"]["request_id"]))
        key = scope["state"]["principal"].key
        if self._secret is not None and key is not None:
            headers.append(("authorization", vouch(self._secret, key)))
        return Forwarded(http.method, target, tuple(headers), body)

    def _route(self, method: str, path: str, asked: Asked | None) -> Route:
        name = loaded_adapter(method, path)
        if name is not None:
            asked = Asked((name,), 1, "", "")
        if asked is None:
            return Route()
        return Route(asked.key(self._facts.base_name, self._digest_of), asked.answers)

    def _count(self, visit: Visit, asked: Asked) -> None:
        """Count the answers that a request asks for, unless it asks for more than replicas give: they refuse it."""
        if asked.answers <= self._facts.max_choices:
            visit.count_answers(asked.answers, asked.count_field)

    async def _state(self, path: str, request: Forwarded) -> Response:
        states = self._replicas.states()
        if path == "/readyz":
            is_ready = any(states.values())
            return PlainTextResponse("ready\n" if is_ready else "not ready\n", 200 if is_ready else 503)
        answers = await self._replicas.ask_each(request, seconds=_PATIENCE)
        if path == "/healthz":
            return _health(states, answers)
        return Response(
            self._metrics.text(self._replicas, answers),
            media_type="text/plain; version=0.0.4; charset=utf-8",
        )


def _health(states: Mapping[str, bool], answers: Sequence[WholeAnswer]) -> Response:
    """How many replicas are healthy, which that should answer don't, and what they say besides."""
    healthy = sum(one.status == 200 for one in answers)
    silent = {name for name, works in states.items() if works} - {one.replica for one in answers}
    said = {line for one in answers for line in one.body.decode().splitlines()[1:]}
    lines = [
        f"{'ok' if healthy else 'failed'}: {healthy} of {len(states)} replicas",
        *(f"no answer from replica {name} within {_PATIENCE:g} s" for name in sorted(silent)),
        *sorted(said),
    ]
    return PlainTextResponse("".join(f"{line}\n" for line in lines), 200 if healthy else 503)


def front_app(
    replicas: Replicas,
    facts: Facts,
    keys: Keys,
    digest_of: Callable[[str], str | None],
    secret: str | None,
) -> ASGIApp:
    """The application in front of replicas.

    Args:
        replicas: Who answers.
        facts: What they serve.
        keys: The API keys, with their limits.
        digest_of: The digest of the adapter that has a name now.
        secret: What the front proves itself with to the replicas; None on a server without keys.
    """
    metrics = FrontMetrics()
    front = Front(replicas, facts, digest_of, metrics, secret)
    return RequestMiddleware(front, keys=keys, metrics=metrics, max_body_bytes=facts.max_body_bytes)
