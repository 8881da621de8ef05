"""`/v1/embeddings`, where the base is an encoder."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request

from manytune.engine.encoder import EncoderEngine
from manytune.errors import ManytuneError
from manytune.server.adapters import Model
from manytune.server.any_engine import AnyEngine, ensure_adapter
from manytune.server.http_errors import HttpError, http_error_of
from manytune.server.metrics import Timing
from manytune.server.routes.chat import fingerprint_of
from manytune.server.schema import EmbeddingRequest
from manytune.server.service import Service

router = APIRouter(prefix="/v1/embeddings")


@router.post("")
async def embed(body: EmbeddingRequest, http: Request) -> dict[str, Any]:
    """The vectors of texts."""
    service: Service = http.app.state.service
    http.state.log_fields |= {"model": body.model, "user": body.user}
    http.state.principal.check_model(body.model)
    texts = body.texts()
    service.loop.check_capacity()
    timing = Timing(service.metrics, body.model)
    model = await asyncio.to_thread(service.adapters.acquire, body.model)
    try:
        ids = [
            await asyncio.to_thread(service.prompts.passage, text) if isinstance(text, str) else tuple(text)
            for text in texts
        ]
        vectors = await service.loop.call_as_request(lambda engine: _vectors(engine, model, ids))
    except ManytuneError as error:
        timing.end("refused")
        raise http_error_of(error) from error
    finally:
        service.adapters.release(model)
    _check_dimensions(body, len(vectors[0]))
    timing.end("stop")
    read = sum(map(len, ids))
    service.metrics.prompt_tokens.labels(body.model).inc(read)
    return {
        "object": "list",
        "model": body.model,
        "system_fingerprint": fingerprint_of(model),
        "data": [
            {"object": "embedding", "index": index, "embedding": _encoded(vector, body.encoding_format)}
            for index, vector in enumerate(vectors)
        ],
        "usage": {"prompt_tokens": read, "total_tokens": read},
    }


def _vectors(engine: AnyEngine, model: Model, ids: Sequence[tuple[int, ...]]) -> list[list[float]]:
    """Compute the vectors, in the engine's thread."""
    if not isinstance(engine, EncoderEngine):
        raise HttpError(
            400,
            f"{model.name} generates text; embeddings need a server whose base is an encoder.",
            code="unsupported_model",
            param="model",
        )
    ensure_adapter(engine, model.adapter, model.terms)
    return engine.embed(ids, model.digest)


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
