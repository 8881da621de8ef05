"""Requests whose texts are read once, in bounded batches, and generate nothing: embeddings and classifications."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from fastapi import Request
from fastapi.responses import Response

from manytune.engine.text_runner import TextInput, TextJob, TextRunner
from manytune.errors import ManytuneError
from manytune.server.access.auth import Principal
from manytune.server.adapters.registry import Model
from manytune.server.disconnects import unless_disconnected
from manytune.server.http_errors import HttpError, http_error_of
from manytune.server.json_lists import list_response
from manytune.server.metrics import Timing
from manytune.server.routes.chat import fingerprint_of
from manytune.server.service import Service

_Text = TypeVar("_Text", covariant=True)


class _Body(Protocol[_Text]):
    @property
    def model(self) -> str: ...

    @property
    def user(self) -> str | None: ...

    def texts(self) -> Sequence[_Text]: ...


@dataclass(frozen=True)
class Reading(Generic[_Text]):
    """Texts that are being read.

    Attributes:
        service: The server's parts.
        model: The model that reads them; in memory for as long as they are read.
        texts: What the client sent.
        tenant: Whose turn it is.
    """

    service: Service
    model: Model
    texts: Sequence[_Text]
    tenant: str

    async def read(self, runner: TextRunner, tokens: Sequence[TextInput]) -> Any:
        """What the runner gives for each text, in the tenant's turns."""
        job = TextJob(texts=tokens, adapter=self.model.adapter, terms=self.model.terms, tenant=self.tenant)
        return await self.service.loop.read_texts(runner, job)


@dataclass(frozen=True)
class Read:
    """What came of the texts: a row for each, and how many tokens were read."""

    rows: Iterable[Mapping[str, Any]]
    tokens: int


async def respond(
    body: _Body[_Text],
    http: Request,
    read: Callable[[Reading[_Text]], Awaitable[Read]],
    *,
    classifies: bool = False,
) -> Response:
    """Admit a request, read its texts with its model in memory, and answer; no further if the client disconnects.

    Args:
        body: The request's body.
        http: The request.
        read: Reads the texts.
        classifies: Whether the model must be a classifier.
    """
    service: Service = http.app.state.service
    http.state.log_fields |= {"model": body.model, "user": body.user}
    http.state.principal.check_model(body.model)
    texts = body.texts()
    service.loop.check_ready()
    principal: Principal = http.state.principal
    reservation = service.quotas.reserve(principal.tenant)
    try:
        answered = _answered(service, body.model, texts, principal, read, classifies=classifies)
        return await unless_disconnected(http, answered)
    finally:
        reservation.release()


async def _answered(
    service: Service,
    name: str,
    texts: Sequence[_Text],
    principal: Principal,
    read: Callable[[Reading[_Text]], Awaitable[Read]],
    *,
    classifies: bool,
) -> Response:
    timing = Timing(service.metrics, name, principal.name)
    model = await service.adapters.acquire_when_examined(name, classifies=classifies)
    try:
        found = await read(Reading(service, model, texts, principal.tenant))
    except (ManytuneError, HttpError) as error:
        timing.end("refused")
        raise (http_error_of(error) if isinstance(error, ManytuneError) else error) from error
    except asyncio.CancelledError:
        timing.end("cancelled")
        raise
    finally:
        service.adapters.release(model)
    timing.end("stop")
    timing.count_tokens(found.tokens)
    return await list_response(
        found.rows,
        object="list",
        model=name,
        system_fingerprint=fingerprint_of(model),
        usage={"prompt_tokens": found.tokens, "total_tokens": found.tokens},
    )
