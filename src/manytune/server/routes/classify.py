"""`/v1/classify`: labels with probabilities, or numbers. Requests that come at the same time share batches."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request

from manytune.data.label_kinds import AnyLabels
from manytune.data.numeric_labels import NumericLabels
from manytune.engine.classifier import Asked
from manytune.errors import ManytuneError
from manytune.server.adapters import Model
from manytune.server.http_errors import HttpError, http_error_of
from manytune.server.labelling import labels_of_model
from manytune.server.metrics import Timing
from manytune.server.routes.chat import fingerprint_of
from manytune.server.schema import ClassifyRequest
from manytune.server.service import Service

router = APIRouter(prefix="/v1/classify")

_NOT_FINITE = "the head's outputs are NaN or Inf: the values of its adapter are too large."


@router.post("")
async def classify(body: ClassifyRequest, http: Request) -> dict[str, Any]:
    """The label of each text, and the probability of every label; a regression's number."""
    service: Service = http.app.state.service
    http.state.log_fields |= {"model": body.model, "user": body.user}
    http.state.principal.check_model(body.model)
    texts = body.texts()
    service.loop.check_capacity()
    timing = Timing(service.metrics, body.model)
    model = await asyncio.to_thread(lambda: service.adapters.acquire(body.model, classifies=True))
    try:
        tokens = await asyncio.to_thread(service.labelling.tokens, texts, model.manifest)
        asked = service.labelling.wait(model, tokens)
        try:
            await service.loop.call_as_request(lambda _: service.labelling.run())
        finally:
            service.labelling.forget(asked)
        rows = _rows(service, model, asked)
    except (ManytuneError, HttpError) as error:
        timing.end("refused")
        raise (http_error_of(error) if isinstance(error, ManytuneError) else error) from error
    finally:
        service.adapters.release(model)
    timing.end("stop")
    read = sum(len(text.ids) for text in tokens)
    service.metrics.prompt_tokens.labels(body.model).inc(read)
    return {
        "object": "list",
        "model": body.model,
        "system_fingerprint": fingerprint_of(model),
        "data": rows,
        "usage": {"prompt_tokens": read, "total_tokens": read},
    }


def _rows(service: Service, model: Model, asked: Asked) -> list[dict[str, Any]]:
    """The answer's rows, one a text."""
    if asked.error is not None:
        raise asked.error
    if asked.probabilities is None:
        raise HttpError(500, "the classification failed; the server's log has why.", code="internal_error")
    labels = labels_of_model(model, len(asked.probabilities[0]))
    return [_row(service, model, number, labels, found) for number, found in enumerate(asked.probabilities)]


def _row(
    service: Service, model: Model, number: int, labels: AnyLabels, found: Sequence[float]
) -> dict[str, Any]:
    if not all(map(math.isfinite, found)):
        assert model.adapter is not None
        service.adapters.record_failure(model.name, model.adapter.digest, _NOT_FINITE)
        raise HttpError(409, _NOT_FINITE, code="adapter_unusable", param="model")
    if isinstance(labels, NumericLabels):
        return {"object": "regression", "index": number, "value": labels.value(found[0])}
    names = labels.names
    best = max(range(len(names)), key=found.__getitem__)
    return {
        "object": "classification",
        "index": number,
        "label": names[best],
        "probability": found[best],
        "probabilities": dict(zip(names, found, strict=True)),
    }
