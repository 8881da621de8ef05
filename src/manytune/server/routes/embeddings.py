"""`/v1/embeddings`, where the base is an encoder."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request

from manytune.engine.encoder import EncoderEngine
from manytune.server.adapters import Model
from manytune.server.any_engine import AnyEngine, ensure_adapter
from manytune.server.http_errors import HttpError
from manytune.server.routes.reading import reading
from manytune.server.schema import EmbeddingRequest

router = APIRouter(prefix="/v1/embeddings")


@router.post("")
async def embed(body: EmbeddingRequest, http: Request) -> dict[str, Any]:
    """The vectors of texts."""
    async with reading(body, http) as asked:
        service, model = asked.service, asked.model
        ids = [
            await asyncio.to_thread(service.prompts.passage, text) if isinstance(text, str) else tuple(text)
            for text in asked.texts
        ]
        vectors = await service.loop.call_as_request(lambda engine: _vectors(engine, model, ids))
        _check_dimensions(body, len(vectors[0]))
    rows = [
        {"object": "embedding", "index": index, "embedding": _encoded(vector, body.encoding_format)}
        for index, vector in enumerate(vectors)
    ]
    return asked.answer(rows, sum(map(len, ids)))


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
