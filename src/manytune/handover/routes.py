"""The routes before a vLLM."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from manytune.errors import ManytuneError
from manytune.handover.front import Front
from manytune.handover.replies import Reply
from manytune.handover.sent import Sent
from manytune.server.access.auth import Principal, Visit
from manytune.server.bodies.body import invalid
from manytune.server.disconnects import unless_disconnected
from manytune.server.http_errors import HttpError, for_clients, http_error_of
from manytune.server.json_lists import list_response
from manytune.server.metrics import Timing
from manytune.server.routes.health import health_answer

router = APIRouter()
_CHAT, _TEXT = "/v1/chat/completions", "/v1/completions"


@router.post(_CHAT)
async def chat(http: Request) -> Response:
    """A conversation; the body is vLLM's, and may have an adapter's `fields`."""
    return await _answered(http, _CHAT)


@router.post(_TEXT)
async def completions(http: Request) -> Response:
    """Text or tokens to continue; the body is vLLM's."""
    return await _answered(http, _TEXT)


async def _answered(http: Request, path: str) -> Response:
    front: Front = http.app.state.front
    principal: Principal = http.state.principal
    visit: Visit = http.state.visit
    sent = Sent(await http.body(), answer_tokens=front.settings.answer_tokens)
    http.state.log_fields["model"] = sent.model
    if sent.answers > front.settings.most_answers:
        raise invalid(
            f"n and prompt ask for more than {front.settings.most_answers} answers, which is this server's limit for "
            "one request.",
            "n",
        )
    principal.check_model(sent.model)
    front.check_running()
    visit.count_answers(sent.answers, "n")
    async with AsyncExitStack() as held:
        reservation = front.quotas.reserve(principal.tenant, sent.answers)
        held.callback(reservation.release_all)
        try:
            version = await front.versions.acquire(sent.model)
            held.callback(front.versions.release, version)
            salt = f"{front.secret}{principal.tenant}" if front.has_keys else None
            body = sent.for_vllm(version, salt=salt, is_chat=path == _CHAT)
        except ManytuneError as error:
            raise http_error_of(error) from error
        timing = Timing(front.metrics, version.name, principal.name)
        reply = Reply(version, timing, wants_usage=sent.wants_usage)
        held.callback(reply.end, "cancelled")
        if sent.streams:
            return await _stream(http, path, body, reply, held)
        return await unless_disconnected(http, _whole(http, path, body, reply))


async def _whole(http: Request, path: str, body: dict[str, Any], reply: Reply) -> Response:
    status, content = await _front(http).client.json("POST", path, body)
    if status != 200 or not isinstance(content, dict):
        return JSONResponse(reply.error(content), status)
    answer = reply.whole(content)
    http.state.log_fields["completion_tokens"] = reply.completion_tokens
    return JSONResponse(answer)


async def _stream(
    http: Request, path: str, body: dict[str, Any], reply: Reply, held: AsyncExitStack
) -> Response:
    """The answer as it comes."""
    answer = await held.enter_async_context(_front(http).client.ask("POST", path, body))
    if answer.status != 200:
        return Response(
            _json(reply.error(_decoded(await answer.content()))), answer.status, media_type="application/json"
        )

    async def events() -> AsyncIterator[bytes]:
        try:
            async for event in reply.events(answer.chunks):
                yield event
        except HttpError as error:  # vLLM has ended in the middle
            yield b"data: " + _json(error.body()) + b"\n\n"
        http.state.log_fields["completion_tokens"] = reply.completion_tokens

    return _Stream(events(), held.pop_all())


class _Stream(StreamingResponse):
    """A stream that lets go of what it holds when it has ended, whether anything of it was sent or not."""

    def __init__(self, events: AsyncIterator[bytes], held: AsyncExitStack) -> None:
        # Proxies must not buffer the stream.
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        async with self._held:
            await super().__call__(scope, receive, send)


@router.get("/v1/models")
async def list_models(http: Request) -> Response:
    """All models that the key may use, the base first, without adapters that vLLM can't serve."""
    front, principal = _front(http), http.state.principal
    models = front.versions.catalogue.models(principal.may_use)
    return await list_response(models, object="list")


@router.get("/v1/models/{name:path}")
async def show_model(name: str, http: Request) -> Response:
    """One model."""
    front = _front(http)
    http.state.principal.check_model(name)
    if name == front.settings.base_name:
        return Response(front.versions.catalogue.base, media_type="application/json")
    listed = await front.versions.look_up(name)
    reason = front.versions.catalogue.unservable(listed)
    if reason is not None:
        raise HttpError(409, for_clients(reason), code="adapter_unusable", param="model")
    return Response(listed.model, media_type="application/json")


@router.get("/v1/adapters")
async def list_adapters(http: Request) -> Response:
    """All adapters, whether vLLM has them, and why it can't serve the others."""
    versions = _front(http).versions
    rows = (
        {
            "id": one.name,
            "root": one.digest,
            "requests": versions.in_use(one.digest),
            **one.facts,
            "resident": one.digest in versions.loaded,
            "unservable": versions.catalogue.unservable(one),
        }
        for one in versions.catalogue.listed
    )
    return await list_response(rows, object="list")


@router.post("/v1/adapters/reload")
async def reload_all(http: Request) -> dict[str, Any]:
    """Check the store for new versions now instead of at the next interval."""
    return {"changed": await _front(http).versions.check()}


@router.post("/v1/adapters/{name:path}/load")
async def load(name: str, http: Request) -> dict[str, Any]:
    """Have vLLM load an adapter before it is requested."""
    return {"id": name, "root": await _front(http).versions.load(name), "resident": True}


@router.get("/healthz")
async def healthz(http: Request) -> Response:
    """200 while vLLM runs, 503 once it has ended and the server must be restarted; see `health_answer`."""
    front = _front(http)
    return health_answer(has_failed=front.failure() is not None, unreachable=front.versions.unreachable)


@router.get("/readyz")
async def readyz(http: Request) -> Response:
    """200 while vLLM answers."""
    front = _front(http)
    ready = front.failure() is None and await front.client.is_ready()
    return PlainTextResponse("ready\n" if ready else "not ready\n", 200 if ready else 503)


@router.get("/metrics")
async def metrics(http: Request) -> Response:
    """Metrics for Prometheus: manytune's, and vLLM's own after them."""
    front = _front(http)
    status, theirs = await front.client.json("GET", "/metrics")
    text = front.metrics.text() + (str(theirs).encode() if status == 200 else b"")
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def _front(http: Request) -> Front:
    front: Front = http.app.state.front
    return front


def _json(content: dict[str, Any]) -> bytes:
    return bytes(JSONResponse(content).body)


def _decoded(content: bytes) -> object:
    try:
        return json.loads(content)
    except ValueError:
        return content.decode(errors="replace")
