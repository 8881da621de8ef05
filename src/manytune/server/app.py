"""The web application: a base, its adapters and their routes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib.resources import files
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request

from manytune import __version__
from manytune.engine.encoder import EncoderEngine
from manytune.engine.engine import Engine
from manytune.engine.static_batch import end_token_ids
from manytune.engine.weights import Weights
from manytune.errors import ManytuneError
from manytune.server.adapters import Adapters
from manytune.server.auth import Keys
from manytune.server.http_errors import Refusal, refusal_of
from manytune.server.loop import AnyEngine, EngineLoop
from manytune.server.metrics import Metrics
from manytune.server.middleware import Gate
from manytune.server.pooling import pooling_of
from manytune.server.prompts import Prompts
from manytune.server.routes import adapters as adapter_routes
from manytune.server.routes import chat, compare, completions, embeddings, health, models
from manytune.server.service import Service
from manytune.server.settings import Settings
from manytune.server.watcher import Watcher
from manytune.store.base import Base
from manytune.store.store import AdapterStore

_log = logging.getLogger(__name__)
_LOCAL_HOSTS = ["localhost", "127.0.0.1", "[::1]"]


def create_app(
    base: Base,
    store: AdapterStore,
    settings: Settings,
    keys: Keys | None = None,
    *,
    max_batch: int = 32,
    kv_budget_tokens: int = 32768,
    prefix_cache_tokens: int = 0,
    weights: Weights = "packed",
    drain_seconds: float = 30.0,
) -> FastAPI:
    """A server of one base and the adapters of a store.

    Args:
        base: Nobody else may change it from now on.
        store: The adapters.
        settings: Limits.
        keys: Who may ask. Without keys only requests to this machine's own names are answered.
        max_batch: As of `Engine`.
        kv_budget_tokens: As of `Engine`.
        prefix_cache_tokens: As of `Engine`.
        weights: As of `Engine`.
        drain_seconds: How long running requests may go on when the server stops.

    Raises:
        ConfigError: The engine can't run the base.
    """
    keys = keys if keys is not None else Keys()
    prompts = Prompts(base, max_chars=settings.max_prompt_chars)
    engine: AnyEngine
    if base.is_encoder:
        engine = EncoderEngine(base.model, pooling_of(base.name), pad_id=base.tokenizer.pad_token_id or 0)
    else:
        engine = Engine(
            base.model,
            base.tokenizer,
            kv_budget_tokens=kv_budget_tokens,
            max_batch=max_batch,
            prefix_cache_tokens=prefix_cache_tokens,
            end_ids=prompts.end_ids,
            weights=weights,
        )
    loop = EngineLoop(engine, max_running=max_batch, max_queue=settings.max_queue)
    adapters = Adapters(store, base, memory=settings.adapter_memory, base_name=settings.base_name)
    service = Service(
        settings=settings,
        adapters=adapters,
        prompts=prompts,
        loop=loop,
        metrics=Metrics(loop, adapters.cache),
        end_ids=end_token_ids(base.model, base.tokenizer) | frozenset(prompts.end_ids),
        positions=getattr(base.model.config.get_text_config(), "max_position_embeddings", None),
        decode=prompts.token_text,
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loop.start()
        app.state.watcher = Watcher(adapters, loop, settings.watch_seconds)
        watching = asyncio.create_task(app.state.watcher.run())
        yield
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        await loop.stop(patience=drain_seconds)
        adapters.cache.close()

    app = FastAPI(
        title="manytune",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.service = service
    for module in (health, models, chat, completions, compare, embeddings, adapter_routes):
        app.include_router(module.router)
    _add_pages(app)
    _add_error_answers(app)
    app.add_middleware(Gate, keys=keys, metrics=service.metrics, max_body_bytes=settings.max_body_bytes)
    if not keys:
        # A web page elsewhere may have its own name point here, and would then read the answers.
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=_LOCAL_HOSTS)
    return app


def _add_pages(app: FastAPI) -> None:
    """The playground and the operator's page; all that they show comes through routes that ask for a key."""
    headers = {
        "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }
    folder = files("manytune.server").joinpath("page")
    playground_page = folder.joinpath("playground.html").read_text(encoding="utf-8")
    operator_page = folder.joinpath("operator.html").read_text(encoding="utf-8")

    @app.get("/", include_in_schema=False)
    async def playground() -> HTMLResponse:
        return HTMLResponse(playground_page, headers=headers)

    @app.get("/operator", include_in_schema=False)
    async def operator() -> HTMLResponse:
        return HTMLResponse(operator_page, headers=headers)


def _add_error_answers(app: FastAPI) -> None:
    def answer(refusal: Refusal) -> JSONResponse:
        return JSONResponse(refusal.body(), refusal.status, refusal.headers)

    @app.exception_handler(Refusal)
    async def refused(_: Request, error: Refusal) -> JSONResponse:
        return answer(error)

    @app.exception_handler(ManytuneError)
    async def unusable(_: Request, error: ManytuneError) -> JSONResponse:
        return answer(refusal_of(error))

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        return answer(_malformed(error.errors()[0]))

    @app.exception_handler(HTTPException)
    async def elsewhere(_: Request, error: HTTPException) -> JSONResponse:
        code = {400: "invalid_json", 404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code)
        return answer(Refusal(error.status_code, str(error.detail), code=code))

    @app.exception_handler(Exception)
    async def broken(http: Request, error: Exception) -> JSONResponse:
        _log.error("a request failed", exc_info=error)
        return answer(
            Refusal(500, "the server failed at this request; its log says more.", code="internal_error")
        )


def _malformed(error: Any) -> Refusal:
    where = ".".join(str(part) for part in error["loc"][1:])
    if error["type"] == "extra_forbidden":
        return Refusal(
            400, f"there is no parameter {where[:200]}.", code="unknown_parameter", param=where[:200]
        )
    if error["type"] == "json_invalid":
        return Refusal(400, "the body isn't valid JSON.", code="invalid_json")
    return Refusal(400, f"{where[:200]}: {error['msg']}.", code="invalid_value", param=where[:200] or None)
