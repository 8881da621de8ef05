"""Liveness, readiness and metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response

from manytune.server.service import Service

router = APIRouter()
_CUT_OFF = "the store of adapters can't be reached; those fetched before are served, and no new versions\n"


@router.get("/healthz")
async def healthz(http: Request) -> Response:
    """200 while the engine works, 503 once it has failed and the server must be restarted.

    A store that can't be reached is said, and is no reason to restart: adapters that are here are served.
    """
    service: Service = http.app.state.service
    if service.loop.failure is not None:
        return PlainTextResponse("failed\n", 503)
    cut_off = service.adapters.store.unreachable is not None
    return PlainTextResponse("ok\n" + (_CUT_OFF if cut_off else ""))


@router.get("/readyz")
async def readyz(http: Request) -> Response:
    """200 while requests are accepted, 503 while the server stops."""
    service: Service = http.app.state.service
    ready = service.loop.is_ready
    return PlainTextResponse("ready\n" if ready else "not ready\n", 200 if ready else 503)


@router.get("/metrics")
async def metrics(http: Request) -> Response:
    """Metrics for Prometheus."""
    service: Service = http.app.state.service
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
