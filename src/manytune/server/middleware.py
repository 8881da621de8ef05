"""The gate before all routes: request ids, keys, limits, the body's size, and one line of log for each request.

A path is open, for every key, or for admins. One that is in no list is for admins: a new route is shut until somebody
decides otherwise.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from manytune.server.auth import Keys, Principal
from manytune.server.http_errors import Refusal
from manytune.server.metrics import Metrics

#: Paths that need no key, with nothing in them that needs one.
OPEN = frozenset({"/", "/operator", "/healthz", "/readyz"})
#: Paths for every key.
FOR_KEYS = re.compile(
    r"/v1/(chat/completions|completions|compare|embeddings|models|models/[A-Za-z0-9._-]{1,100})|/openapi\.json"
)
#: What an operator may look at on a server without keys, which listens to its own machine alone.
LOCAL = frozenset({"/metrics"})

_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_BODY_SECONDS = 30.0
_log = logging.getLogger("manytune.server.requests")


class Gate:
    """Lets a request through to the app, or refuses it.

    Args:
        app: The app.
        keys: Who may ask.
        metrics: Where refusals are counted.
        max_body_bytes: The largest body.
    """

    def __init__(self, app: ASGIApp, keys: Keys, metrics: Metrics, max_body_bytes: int) -> None:
        self._app = app
        self._keys = keys
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            # There are no web sockets, and the lifespan is nobody's request.
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        noted: dict[str, Any] = {"request_id": request_id, "method": scope["method"], "path": scope["path"]}
        status = 499  # the client has gone before there was an answer

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        entered: Principal | None = None
        try:
            try:
                principal = self._admit(scope["path"], headers.get("authorization"))
                noted["key"] = principal.name
                if scope["path"] not in OPEN:
                    principal.enter()
                    entered = principal
                body = await self._body(headers, receive)
            except Refusal as refusal:
                response = JSONResponse(refusal.body(), refusal.status, refusal.headers)
                await response(scope, receive, answer)
                return
            scope.setdefault("state", {}).update(principal=principal, noted=noted)
            await self._app(scope, _replay(body, receive), answer)
        finally:
            if entered is not None:
                entered.leave()
            if status >= 400:
                self._metrics.refusals.labels(str(status)).inc()
            noted |= {"status": status, "seconds": round(time.perf_counter() - began, 4)}
            _log.info("request", extra={"noted": noted})

    def _admit(self, path: str, authorization: str | None) -> Principal:
        if path in OPEN:
            return Keys().recognise(None)
        principal = self._keys.recognise(authorization)
        if principal.is_admin or FOR_KEYS.fullmatch(path) or (not self._keys and path in LOCAL):
            return principal
        raise Refusal(
            403,
            f"{path[:100]} needs an admin key, or doesn't exist."
            + ("" if self._keys else " This server was started without one."),
            code="admin_key_required",
        )

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        too_large = Refusal(
            413, f"the body is larger than {self._max_body_bytes:,} bytes.", code="body_too_large"
        )
        length = headers.get("content-length", "0")
        if not re.fullmatch("[0-9]{1,18}", length) or int(length) > self._max_body_bytes:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refusal(400, "the body isn't complete.", code="incomplete_body")
                    body += message.get("body", b"")
                    if len(body) > self._max_body_bytes:
                        raise too_large
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            raise Refusal(408, "the body took too long to arrive.", code="body_too_slow") from None


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body that was read, and then what comes."""
    given = False

    async def next_message() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return next_message
