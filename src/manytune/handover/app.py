"""manytune's side of a vLLM: keys, names, limits and metrics before it, the same as before manytune's own engine."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from manytune.errors import ManytuneError
from manytune.handover.front import Front, FrontSettings
from manytune.handover.routes import router
from manytune.handover.versions import Versions
from manytune.handover.vllm_client import VllmClient
from manytune.server.access.auth import Keys
from manytune.server.access.key_file import KeySource, follow_keys, keys_of
from manytune.server.access.tenant_quotas import TenantQuotas
from manytune.server.application import plain_application
from manytune.server.background import in_background, repeat
from manytune.server.http_errors import HttpError
from manytune.server.metrics import Metrics, store_reachable
from manytune.server.middleware import RequestMiddleware

_log = logging.getLogger(__name__)


class VersionsState(Collector):
    """What vLLM has of the store's adapters.

    Args:
        versions: Names to versions.
    """

    def __init__(self, versions: Versions) -> None:
        self._versions = versions

    def collect(self) -> Iterator[Metric]:
        """What it is now."""
        yield GaugeMetricFamily(
            "manytune_adapters_resident", "Versions of adapters that vLLM has.", len(self._versions.loaded)
        )
        yield CounterMetricFamily(
            "manytune_adapter_loads", "Loads of adapters into vLLM.", self._versions.loads
        )
        yield store_reachable(self._versions.unreachable)


def create_front(
    settings: FrontSettings,
    versions: Versions,
    client: VllmClient,
    keys: Keys | KeySource | None = None,
    *,
    failure: Callable[[], str | None] = lambda: None,
) -> FastAPI:
    """The application before a running vLLM.

    Args:
        settings: Limits and behaviour.
        versions: The store's adapters in vLLM.
        client: Reaches vLLM.
        keys: The API keys, or where they come from, which is followed. Without keys only requests to this machine's own
            host names are answered.
        failure: How vLLM ended; None while it runs.
    """
    served_keys, source = keys_of(keys)
    metrics = Metrics(VersionsState(versions))
    app = plain_application(_lifespan)
    app.state.key_source, app.state.keys = source, served_keys
    app.state.front = Front(
        settings=settings,
        versions=versions,
        client=client,
        metrics=metrics,
        quotas=TenantQuotas(settings.of_tenant),
        failure=failure,
        has_keys=bool(served_keys),
    )
    app.include_router(router)
    app.add_middleware(
        RequestMiddleware, keys=served_keys, metrics=metrics, max_body_bytes=settings.max_body_bytes
    )
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Follow the store while the application runs."""
    front: Front = app.state.front
    try:
        await front.versions.check_base()
        await front.versions.check()
    except HttpError as error:  # its end is reported by its process
        _log.warning("vLLM doesn't answer: %s", error.message)
    seconds = front.settings.watch_seconds
    watching = repeat(partial(_check, front), seconds, "following the store")
    async with in_background(watching, follow_keys(app.state.keys, app.state.key_source, seconds)):
        yield


async def _check(front: Front) -> None:
    try:
        await front.versions.check()
    except (ManytuneError, OSError, HttpError) as error:
        if front.versions.unreachable is None:  # else it was logged when it began
            _log.warning("the store can't be checked for new versions: %s", error)
