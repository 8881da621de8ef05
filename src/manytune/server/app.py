"""The web application: a base, its adapters and their routes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

from fastapi import FastAPI

from manytune.engine.encoder import EncoderEngine
from manytune.engine.engine import Engine
from manytune.engine.memory import adapter_limit
from manytune.engine.options import EngineOptions
from manytune.engine.text_runner import TextRunner
from manytune.examination.examiner import Examiner, shared_examiner
from manytune.server.access.audit import Audit
from manytune.server.access.auth import Keys
from manytune.server.access.key_file import KeySource, follow_keys, keys_of
from manytune.server.access.tenant_quotas import TenantQuotas
from manytune.server.adapters.registry import AdapterRegistry
from manytune.server.adapters.watcher import Watcher
from manytune.server.any_engine import AnyEngine
from manytune.server.application import plain_application
from manytune.server.background import in_background
from manytune.server.grammars import Grammars
from manytune.server.history import History
from manytune.server.labelling import Labelling
from manytune.server.loop import EngineLoop
from manytune.server.metrics import EngineState, Metrics
from manytune.server.middleware import RequestMiddleware
from manytune.server.pages import add_pages
from manytune.server.pooling import pooling_of
from manytune.server.prompts import Prompts
from manytune.server.routes import adapters as adapter_routes
from manytune.server.routes import chat, classify, compare, completions, dashboard, embeddings, health, models
from manytune.server.service import Service
from manytune.server.settings import Settings
from manytune.store.base import Base
from manytune.store.store import AdapterStore

_LOOKING_SECONDS = 5.0


def create_app(
    base: Base,
    store: AdapterStore,
    settings: Settings,
    keys: Keys | KeySource | None = None,
    engine_options: EngineOptions | None = None,
    examiner: Examiner | None = None,
) -> FastAPI:
    """A server of one base and the adapters of a store.

    Args:
        base: The base; nothing else may change it from now on.
        store: The adapters.
        settings: Limits and behaviour of the server.
        keys: The API keys, or where they come from, which is followed. Without keys only requests to this machine's own
            host names are answered.
        engine_options: Memory and batching of the engine; None for the defaults.
        examiner: Examines adapters before they are read; None for the one that all servers of this process share.

    Raises:
        ConfigError: The engine can't run the base.
    """
    served_keys, source = keys_of(keys)
    examiner = examiner if examiner is not None else shared_examiner()
    examiner.begin()
    service = _service_of(base, store, settings, engine_options or EngineOptions(), examiner)
    app = plain_application(_lifespan)
    app.state.service = service
    app.state.key_source, app.state.keys = source, served_keys
    app.state.history = History(
        service.metrics.traffic, service.loop, service.adapters.cache, seconds=settings.sample_seconds
    )
    app.state.audit = audit = Audit()
    for module in (
        health,
        models,
        chat,
        completions,
        compare,
        embeddings,
        classify,
        adapter_routes,
        dashboard,
    ):
        app.include_router(module.router)
    add_pages(app)
    app.add_middleware(
        RequestMiddleware,
        keys=served_keys,
        metrics=service.metrics,
        max_body_bytes=settings.max_body_bytes,
        audit=audit,
    )
    return app


def _service_of(
    base: Base, store: AdapterStore, settings: Settings, options: EngineOptions, examiner: Examiner
) -> Service:
    prompts = Prompts(base, max_chars=settings.max_prompt_chars)
    limit = adapter_limit(base.model, options)
    options = replace(options, adapter_bytes=limit.nbytes)
    engine: AnyEngine
    embedder: TextRunner | None = None
    if base.is_encoder:
        encoder = EncoderEngine(base.model, pooling_of(base.name), pad_id=base.tokenizer.pad_token_id or 0)
        engine, embedder = encoder, TextRunner(lambda: encoder)
    else:
        engine = Engine(base.model, base.tokenizer, options, end_ids=prompts.end_ids)
    loop = EngineLoop(engine)
    adapters = AdapterRegistry(
        store,
        base,
        memory=settings.adapter_memory,
        base_name=settings.base_name,
        limit=limit,
        examiner=examiner,
    )
    return Service(
        settings=settings,
        adapters=adapters,
        prompts=prompts,
        loop=loop,
        quotas=TenantQuotas(options.max_batch + settings.max_queue),
        grammars=Grammars(base, prompts.end_ids),
        metrics=Metrics(EngineState(loop, adapters)),
        vocabulary=getattr(base.model.config.get_text_config(), "vocab_size", 0),
        positions=base.answer_positions,
        has_encoder=base.is_encoder_decoder,
        labelling=Labelling(base, max_chars=settings.max_prompt_chars),
        embedder=embedder,
    )


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Run the engine and the watcher while the application runs."""
    _build_routes(app)
    service: Service = app.state.service
    service.loop.start()
    app.state.watcher = Watcher(service.adapters, service.loop, service.settings.watch_seconds)
    keys = follow_keys(app.state.keys, app.state.key_source, service.settings.watch_seconds)
    async with in_background(app.state.watcher.run(), app.state.history.run(), keys):
        with suppress(
            TimeoutError
        ):  # of thousands of adapters, the rest is looked at while others are served
            await asyncio.wait_for(app.state.watcher.ready(), _LOOKING_SECONDS)
        yield
    await service.loop.stop(patience=service.settings.drain_seconds)
    service.grammars.close()
    service.adapters.examined.close()
    service.adapters.cache.close()


def _build_routes(app: FastAPI) -> None:
    """Have fastapi make what it otherwise makes at the first request, which that request would wait for.

    It silences warnings meanwhile, as looking at adapters does in other threads, and Python can't do both at once.
    """
    nowhere = {"type": "http", "method": "GET", "path": "/nowhere", "root_path": "", "headers": []}
    for route in app.routes:
        route.matches(nowhere)
