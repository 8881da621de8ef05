"""Requests whose texts are read once, in one pass, and generate nothing: embeddings and classifications."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from fastapi import Request

from manytune.errors import ManytuneError
from manytune.server.adapters import Model
from manytune.server.http_errors import HttpError, http_error_of
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
    """

    service: Service
    model: Model
    texts: Sequence[_Text]

    def answer(self, rows: Sequence[Mapping[str, Any]], tokens: int) -> dict[str, Any]:
        """The response's body, with a row for each text; counts the tokens that were read."""
        name = self.model.name
        self.service.metrics.prompt_tokens.labels(name).inc(tokens)
        return {
            "object": "list",
            "model": name,
            "system_fingerprint": fingerprint_of(self.model),
            "data": rows,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }


@asynccontextmanager
async def reading(
    body: _Body[_Text], http: Request, *, classifies: bool = False
) -> AsyncIterator[Reading[_Text]]:
    """Admit a request, and keep its model in memory within this context; refusals are counted as such.

    Args:
        body: The request's body.
        http: The request.
        classifies: Whether the model must be a classifier.
    """
    service: Service = http.app.state.service
    http.state.log_fields |= {"model": body.model, "user": body.user}
    http.state.principal.check_model(body.model)
    texts = body.texts()
    service.loop.check_capacity()
    timing = Timing(service.metrics, body.model)
    model = await asyncio.to_thread(lambda: service.adapters.acquire(body.model, classifies=classifies))
    try:
        yield Reading(service, model, texts)
    except (ManytuneError, HttpError) as error:
        timing.end("refused")
        raise (http_error_of(error) if isinstance(error, ManytuneError) else error) from error
    finally:
        service.adapters.release(model)
    timing.end("stop")
