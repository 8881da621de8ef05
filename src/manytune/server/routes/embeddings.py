"""`/v1/embeddings`, where the base is an encoder."""

from __future__ import annotations

import asyncio
import base64
import struct
from typing import Any

from fastapi import APIRouter, Request

from manytune.engine.encoder import EncoderEngine
from manytune.errors import ManytuneError
from manytune.server.http_errors import Refusal, refusal_of
from manytune.server.metrics import Timing
from manytune.server.routes.chat import fingerprint_of
from manytune.server.schema import EmbeddingRequest
from manytune.server.service import Service

router = APIRouter(prefix="/v1/embeddings")


@router.post("")
async def embed(body: EmbeddingRequest, http: Request) -> dict[str, Any]:
    """The vectors of texts."""
    service: Service = http.app.state.service
    http.state.noted |= {"model": body.model, "user": body.user}
    http.state.principal.check_model(body.model)
    texts = body.texts()
    service.loop.check_room()
    timing = Timing(service.metrics, body.model)
    model = await asyncio.to_thread(service.adapters.acquire, body.model)
    try:
        ids = [
            await asyncio.to_thread(service.prompts.passage, text) if isinstance(text, str) else tuple(text)
            for text in texts
        ]
        adapter = model.adapter

        def run(engine: Any) -> list[list[float]]:
            if not isinstance(engine, EncoderEngine):
                raise Refusal(
                    400,
                    f"{body.model} writes text; embeddings need a server whose base is an encoder.",
                    code="unsupported_model",
                    param="model",
                )
            if adapter is not None and adapter.id not in engine.adapters:
                engine.add_adapter(adapter.id, adapter)
            return engine.embed(ids, None if adapter is None else adapter.id)

        vectors = await service.loop.ask(run)
    except ManytuneError as error:
        timing.end("refused")
        raise refusal_of(error) from error
    finally:
        service.adapters.release(model)
    width = len(vectors[0])
    if body.dimensions not in (None, width):
        raise Refusal(
            400,
            f"dimensions is {body.dimensions}; {body.model} gives vectors of {width} and no others.",
            code="invalid_value",
            param="dimensions",
        )
    timing.end("stop")
    read = sum(map(len, ids))
    service.metrics.prompt_tokens.labels(body.model).inc(read)
    return {
        "object": "list",
        "model": body.model,
        "system_fingerprint": fingerprint_of(model),
        "data": [
            {"object": "embedding", "index": place, "embedding": _written(vector, body.encoding_format)}
            for place, vector in enumerate(vectors)
        ],
        "usage": {"prompt_tokens": read, "total_tokens": read},
    }


def _written(vector: list[float], form: str) -> list[float] | str:
    if form == "float":
        return vector
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
