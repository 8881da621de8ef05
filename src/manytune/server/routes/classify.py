"""`/v1/classify`: labels with probabilities, from classifiers. Requests that come at the same time share batches."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from manytune.server.adapters import Model
from manytune.server.http_errors import HttpError
from manytune.server.labelling import labels_of_model
from manytune.server.routes.reading import Read, Reading, respond
from manytune.server.schema import ClassifyRequest
from manytune.server.service import Service

router = APIRouter(prefix="/v1/classify")

_NOT_FINITE = "the classifier's probabilities are NaN or Inf: the values of its adapter are too large."


@router.post("")
async def classify(body: ClassifyRequest, http: Request) -> Response:
    """The label of each text, and the probability of every label."""
    return await respond(body, http, _read, classifies=True)


async def _read(asked: Reading[tuple[str, ...]]) -> Read:
    service, model = asked.service, asked.model
    tokens = await asyncio.to_thread(service.labelling.tokens, asked.texts, model.manifest)
    found = await asked.read(service.labelling.runner, tokens)
    names = labels_of_model(model, len(found[0]))
    _check_finite(service, model, found)
    rows = (_row(number, names, one) for number, one in enumerate(found))
    return Read(rows, sum(len(text.ids) for text in tokens))


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
