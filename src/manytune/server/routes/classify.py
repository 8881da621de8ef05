"""`/v1/classify`: labels with probabilities, from classifiers. Requests that come at the same time share batches."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request

from manytune.engine.classifier import Asked
from manytune.server.adapters import Model
from manytune.server.http_errors import HttpError
from manytune.server.labelling import labels_of_model
from manytune.server.routes.reading import reading
from manytune.server.schema import ClassifyRequest
from manytune.server.service import Service

router = APIRouter(prefix="/v1/classify")

_NOT_FINITE = "the classifier's probabilities are NaN or Inf: the values of its adapter are too large."


@router.post("")
async def classify(body: ClassifyRequest, http: Request) -> dict[str, Any]:
    """The label of each text, and the probability of every label."""
    async with reading(body, http, classifies=True) as asked:
        service, model = asked.service, asked.model
        tokens = await asyncio.to_thread(service.labelling.tokens, asked.texts, model.manifest)
        waiting = service.labelling.wait(model, tokens)
        try:
            await service.loop.call_as_request(lambda _: service.labelling.run())
        finally:
            service.labelling.forget(waiting)
        rows = _rows(service, model, waiting)
    return asked.answer(rows, sum(len(text.ids) for text in tokens))


def _rows(service: Service, model: Model, asked: Asked) -> list[dict[str, Any]]:
    """The answer's rows, one a text."""
    if asked.error is not None:
        raise asked.error
    if asked.probabilities is None:
        raise HttpError(500, "the classification failed; the server's log has why.", code="internal_error")
    names = labels_of_model(model, len(asked.probabilities[0]))
    return [_row(service, model, number, names, found) for number, found in enumerate(asked.probabilities)]


def _row(
    service: Service, model: Model, number: int, names: Sequence[str], found: Sequence[float]
) -> dict[str, Any]:
    if not all(map(math.isfinite, found)):
        assert model.adapter is not None
        service.adapters.record_failure(model.name, model.adapter.digest, _NOT_FINITE)
        raise HttpError(409, _NOT_FINITE, code="adapter_unusable", param="model")
    best = max(range(len(names)), key=found.__getitem__)
    return {
        "object": "classification",
        "index": number,
        "label": names[best],
        "probability": found[best],
        "probabilities": dict(zip(names, found, strict=True)),
    }
