"""The middleware of all routes: request ids, authentication, limits, body size, and a log line for each request.

A path is public, for every key, or for admins. A path that isn't listed is for admins, so that a new route is denied by
default.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import uuid
from typing import TYPE_CHECKING, Any, Protocol

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from manytune.server.access.audit import Audit
from manytune.server.access.auth import Keys, Principal, Visit
from manytune.server.access.origins import check_sender
from manytune.server.http_errors import HttpError
from manytune.server.pages import PAGES

if TYPE_CHECKING:
    from prometheus_client import Counter

#: Paths that need no key, and contain nothing that does.
PUBLIC_PATHS = frozenset({*PAGES, "/healthz", "/readyz"})
#: Paths for every key.
KEY_PATHS = re.compile(
    r"/v1/(chat/completions|completions|compare|embeddings|classify|models"
    r"|models/[A-Za-z0-9._-]{1,100}(/[A-Za-z0-9._-]{1,100})?)"
    r"|/openapi\.json"
)
#: Admin paths that are public on a server without keys, which can be reached from its own machine only: they show what
#: it does, and change nothing.
LOCAL_PATHS = re.compile(r"/metrics|/v1/history|/v1/audit|/v1/adapters(/[A-Za-z0-9._/-]{1,201}/versions)?")

#: Among a request's log fields: the replica that answered has written its line.
LOGGED_BY_REPLICA = "logged_by_replica"
#: Among a request's log fields: what an action of an admin has changed, for the audit.
DETAIL = "detail"

_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_BODY_SECONDS = 30.0
_HIGH, _LOW = rb"\\u[dD][89abAB][0-9a-fA-F]{2}", rb"\\u[dD][c-fC-F]"
_HALF = re.compile(rb"%b(?!%b)|(?<!%b)%b" % (_HIGH, _LOW, _HIGH, _LOW))
_log = logging.getLogger("manytune.server.requests")


class CountsErrors(Protocol):
    """Metrics as far as the middleware needs them.

    Attributes:
        http_errors: Answers with a status of 400 or more, by status.
    """

    http_errors: Counter


class RequestMiddleware:
    """Passes requests that are allowed to the app, and answers the others with an error.

    Args:
        app: The app.
        keys: The API keys.
        metrics: Counts errors.
        max_body_bytes: Size of the largest body.
        audit: Keeps what admins do; None to keep nothing.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Keys,
        metrics: CountsErrors,
        max_body_bytes: int,
        audit: Audit | None = None,
    ) -> None:
        self._app = app
        self._keys = keys
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes
        self._audit = audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":  # there are no web sockets
                await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        log_fields: dict[str, Any] = {
            "request_id": request_id,
            "method": scope["method"],
            "path": scope["path"],
        }
        status = 499  # until there is an answer: the client may disconnect before

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        visit: Visit | None = None
        principal: Principal | None = None
        try:
            try:
                is_page = scope["path"] in PUBLIC_PATHS and scope["method"] in ("GET", "HEAD")
                check_sender(headers, is_page=is_page, is_keyless=not self._keys)
                principal = self._authorize(scope["path"], headers.get("authorization"))
                log_fields["key"] = principal.name
                if scope["path"] not in PUBLIC_PATHS:
                    visit = principal.enter()
                body = await self._body(headers, receive)
            except HttpError as error:
                response = JSONResponse(error.body(), error.status, error.headers)
                await response(scope, receive, answer)
                return
            scope.setdefault("state", {}).update(principal=principal, visit=visit, log_fields=log_fields)
            await self._app(scope, _replay(body, receive), answer)
        finally:
            if visit is not None:
                visit.leave()
            if status >= 400:
                self._metrics.http_errors.labels(str(status)).inc()
            detail = log_fields.pop(DETAIL, None)
            if self._audit is not None and principal is not None and _is_of_admins(principal, scope):
                self._audit.record(
                    key=principal.name,
                    method=scope["method"],
                    path=scope["path"],
                    status=status,
                    request_id=request_id,
                    detail=detail,
                )
            log_fields |= {"status": status, "seconds": round(time.perf_counter() - began, 4)}
            if not log_fields.pop(LOGGED_BY_REPLICA, False):
                _log.info("request", extra={"fields": log_fields})

    def _authorize(self, path: str, authorization: str | None) -> Principal:
        if path in PUBLIC_PATHS:
            return Keys().authenticate(None)
        principal = self._keys.authenticate(authorization)
        if (
            principal.is_admin
            or KEY_PATHS.fullmatch(path)
            or (not self._keys and LOCAL_PATHS.fullmatch(path))
        ):
            return principal
        raise HttpError(
            403,
            f"{path[:100]} needs an admin key, or doesn't exist."
            + ("" if self._keys else " This server was started without one."),
            code="admin_key_required",
        )

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        too_large = HttpError(
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
                        raise HttpError(400, "the body isn't complete.", code="incomplete_body")
                    body += message.get("body", b"")
                    if len(body) > self._max_body_bytes:
                        raise too_large
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            raise HttpError(408, "the body took too long to arrive.", code="body_too_slow") from None
        if not _is_utf8(body):
            raise HttpError(
                400, "the body isn't UTF-8, in which JSON is sent; encode it so.", code="invalid_json"
            )
        if _has_half_a_character(body):
            raise HttpError(
                400,
                "an escape such as \\ud83d in the body is half a character, which no tokenizer can read; send the "
                "whole character.",
                code="invalid_value",
            )
        return bytes(body)


def _is_of_admins(principal: Principal, scope: Scope) -> bool:
    """Whether a request is an action of an admin: one that may change something, and isn't open to every key."""
    changes = scope["method"] not in ("GET", "HEAD", "OPTIONS")
    return principal.is_admin and changes and not KEY_PATHS.fullmatch(scope["path"])


def _is_utf8(body: bytes | bytearray) -> bool:
    """Whether a body is text in UTF-8. Python reads JSON in other encodings, too, and then halves of characters."""
    if b"\0" in body:  # UTF-16 or UTF-32: in UTF-8 JSON has none
        return False
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


def _has_half_a_character(body: bytes | bytearray) -> bool:
    """Whether JSON has a surrogate without its other half; what isn't JSON is for others to refuse."""
    if not _HALF.search(body):
        return False
    try:  # it may be a backslash, itself escaped, before what looks like one
        json.dumps(json.loads(body), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    except (ValueError, RecursionError):
        return False
    return False


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that returns the body that was read, and then further messages."""
    is_replayed = False

    async def next_message() -> Message:
        nonlocal is_replayed
        if is_replayed:
            return await receive()
        is_replayed = True
        return {"type": "http.request", "body": body, "more_body": False}

    return next_message
