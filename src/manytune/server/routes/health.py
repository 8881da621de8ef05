"""Liveness, readiness and metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response

from manytune.server.service import Service

router = APIRouter()


@router.get("/healthz")
async def healthz(http: Request) -> Response:
    """200 while the engine works, 503 once it has failed and the server must be restarted."""
    service: Service = http.app.state.service
    failed = service.loop.failure is not None
    return PlainTextResponse("failed\n" if failed else "ok\n", 503 if failed else 200)


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
