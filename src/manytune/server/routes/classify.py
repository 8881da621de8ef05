"""`/v1/classify`: labels with probabilities, from classifiers. Requests that come at the same time share batches."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from manytune.engine.text_runner import TextJob
from manytune.errors import ManytuneError
from manytune.server.adapters import Model
from manytune.server.disconnects import unless_disconnected
from manytune.server.http_errors import HttpError, http_error_of
from manytune.server.json_lists import list_response
from manytune.server.labelling import labels_of_model
from manytune.server.metrics import Timing
from manytune.server.routes.chat import fingerprint_of
from manytune.server.schema import ClassifyRequest
from manytune.server.service import Service

router = APIRouter(prefix="/v1/classify")

_NOT_FINITE = "the classifier's probabilities are NaN or Inf: the values of its adapter are too large."


@router.post("")
async def classify(body: ClassifyRequest, http: Request) -> Response:
    """The label of each text, and the probability of every label."""
    service: Service = http.app.state.service
    http.state.log_fields |= {"model": body.model, "user": body.user}
    http.state.principal.check_model(body.model)
    texts = body.texts()
    service.loop.check_ready()
    places = service.places.take(http.state.principal.tenant)
    try:
        return await unless_disconnected(http, _answer(service, http, body, texts))
    finally:
        places.free()


async def _answer(
    service: Service, http: Request, body: ClassifyRequest, texts: Sequence[tuple[str, ...]]
) -> Response:
    timing = Timing(service.metrics, body.model)
    model = await asyncio.to_thread(lambda: service.adapters.acquire(body.model, classifies=True))
    try:
        tokens = await asyncio.to_thread(service.labelling.tokens, texts, model.manifest)
        job = TextJob(
            texts=tokens, adapter=model.adapter, terms=model.terms, tenant=http.state.principal.tenant
        )
        found = await service.loop.read_texts(service.labelling.runner, job)
        names = labels_of_model(model, len(found[0]))
        _check_finite(service, model, found)
    except (ManytuneError, HttpError) as error:
        timing.end("refused")
        raise (http_error_of(error) if isinstance(error, ManytuneError) else error) from error
    except asyncio.CancelledError:
        timing.end("cancelled")
        raise
    finally:
        service.adapters.release(model)
    timing.end("stop")
    read = sum(len(text.ids) for text in tokens)
    service.metrics.prompt_tokens.labels(body.model).inc(read)
    return await list_response(
        (_row(number, names, one) for number, one in enumerate(found)),
        object="list",
        model=body.model,
        system_fingerprint=fingerprint_of(model),
        usage={"prompt_tokens": read, "total_tokens": read},
    )


def _check_finite(service: Service, model: Model, found: Sequence[Sequence[float]]) -> None:
    if not all(math.isfinite(probability) for row in found for probability in row):
        assert model.adapter is not None
        service.adapters.record_failure(model.name, model.adapter.digest, _NOT_FINITE)
        raise HttpError(409, _NOT_FINITE, code="adapter_unusable", param="model")


def _row(number: int, names: Sequence[str], found: Sequence[float]) -> dict[str, Any]:
    best = max(range(len(names)), key=found.__getitem__)
    return {
        "object": "classification",
        "index": number,
        "label": names[best],
        "probability": found[best],
        "probabilities": dict(zip(names, found, strict=True)),
    }
