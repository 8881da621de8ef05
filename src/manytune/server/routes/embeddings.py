"""`/v1/embeddings`, where the base is an encoder."""

from __future__ import annotations

import asyncio
import base64
import math
import struct
from collections.abc import Sequence
from functools import partial

from fastapi import APIRouter, Request
from fastapi.responses import Response

from manytune.engine.text_runner import TextRunner, TextTokens
from manytune.server.adapters.registry import Model
from manytune.server.bodies.schema import EmbeddingRequest
from manytune.server.http_errors import HttpError
from manytune.server.routes.reading import Read, Reading, respond
from manytune.server.service import Service

router = APIRouter(prefix="/v1/embeddings")

_NOT_FINITE = "the vectors are NaN or Inf: the values of the adapter are too large."


@router.post("")
async def embed(body: EmbeddingRequest, http: Request) -> Response:
    """The vectors of texts."""
    return await respond(body, http, partial(_read, body))


async def _read(body: EmbeddingRequest, asked: Reading[str | list[int]]) -> Read:
    service, model = asked.service, asked.model
    ids = [
        await asyncio.to_thread(service.prompts.passage, text) if isinstance(text, str) else tuple(text)
        for text in asked.texts
    ]
    vectors = await asked.read(_embedder(service, model), [TextTokens(one) for one in ids])
    _check_dimensions(body, len(vectors[0]))
    if not await asyncio.to_thread(_is_finite, vectors):
        raise HttpError(409, _NOT_FINITE, code="adapter_unusable", param="model")
    rows = (
        {"object": "embedding", "index": index, "embedding": _encoded(vector, body.encoding_format)}
        for index, vector in enumerate(vectors)
    )
    return Read(rows, sum(map(len, ids)))


def _embedder(service: Service, model: Model) -> TextRunner:
    if service.embedder is None:
        raise HttpError(
            400,
            f"{model.name} generates text; embeddings need a server whose base is an encoder.",
            code="unsupported_model",
            param="model",
        )
    return service.embedder


def _is_finite(vectors: Sequence[Sequence[float]]) -> bool:
    return all(math.isfinite(value) for vector in vectors for value in vector)


def _check_dimensions(body: EmbeddingRequest, width: int) -> None:
    if body.dimensions not in (None, width):
        raise HttpError(
            400,
            f"dimensions is {body.dimensions}; {body.model} gives vectors of {width} and no others.",
            code="invalid_value",
            param="dimensions",
        )


def _encoded(vector: list[float], encoding: str) -> list[float] | str:
    if encoding == "float":
        return vector
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
