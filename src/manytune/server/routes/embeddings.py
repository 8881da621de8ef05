"""`/v1/embeddings`, where the base is an encoder."""

from __future__ import annotations

import asyncio
import base64
import math
import struct
from collections.abc import Sequence

from fastapi import APIRouter, Request
from fastapi.responses import Response

from manytune.engine.text_runner import TextJob, TextRunner, TextTokens
from manytune.errors import ManytuneError
from manytune.server.adapters import Model
from manytune.server.disconnects import unless_disconnected
from manytune.server.http_errors import HttpError, http_error_of
from manytune.server.json_lists import list_response
from manytune.server.metrics import Timing
from manytune.server.routes.chat import fingerprint_of
from manytune.server.schema import EmbeddingRequest
from manytune.server.service import Service

router = APIRouter(prefix="/v1/embeddings")

_NOT_FINITE = "the vectors are NaN or Inf: the values of the adapter are too large."


@router.post("")
async def embed(body: EmbeddingRequest, http: Request) -> Response:
    """The vectors of texts."""
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
    service: Service, http: Request, body: EmbeddingRequest, texts: Sequence[str | list[int]]
) -> Response:
    timing = Timing(service.metrics, body.model)
    model = await asyncio.to_thread(service.adapters.acquire, body.model)
    try:
        ids = [
            await asyncio.to_thread(service.prompts.passage, text) if isinstance(text, str) else tuple(text)
            for text in texts
        ]
        job = TextJob(
            texts=[TextTokens(one) for one in ids],
            adapter=model.adapter,
            terms=model.terms,
            tenant=http.state.principal.tenant,
        )
        vectors = await service.loop.read_texts(_embedder(service, model), job)
        _check_dimensions(body, len(vectors[0]))
        if not await asyncio.to_thread(_is_finite, vectors):
            raise HttpError(409, _NOT_FINITE, code="adapter_unusable", param="model")
    except (ManytuneError, HttpError) as error:
        timing.end("refused")
        raise (http_error_of(error) if isinstance(error, ManytuneError) else error) from error
    except asyncio.CancelledError:
        timing.end("cancelled")
        raise
    finally:
        service.adapters.release(model)
    timing.end("stop")
    read = sum(map(len, ids))
    service.metrics.prompt_tokens.labels(body.model).inc(read)
    rows = (
        {"object": "embedding", "index": index, "embedding": _encoded(vector, body.encoding_format)}
        for index, vector in enumerate(vectors)
    )
    return await list_response(
        rows,
        object="list",
        model=body.model,
        system_fingerprint=fingerprint_of(model),
        usage={"prompt_tokens": read, "total_tokens": read},
    )


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
