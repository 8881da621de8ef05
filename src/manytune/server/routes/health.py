"""Liveness, readiness and metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response

from manytune.server.service import Service

router = APIRouter()


@router.get("/healthz")
async def healthz(http: Request) -> Response:
    """200 while the engine works, 503 once it has failed and the server must be restarted; see `health_answer`."""
    service: Service = http.app.state.service
    return health_answer(
        has_failed=service.loop.failure is not None, unreachable=service.adapters.store_names.unreachable
    )


def health_answer(*, has_failed: bool, unreachable: str | None) -> Response:
    """A store that can't be read is reported, and is no reason to restart: adapters that are here are served."""
    if has_failed:
        return PlainTextResponse("failed\n", 503)
    cut_off = (
        "" if unreachable is None else "the store of adapters can't be read; no new versions are served\n"
    )
    return PlainTextResponse(f"ok\n{cut_off}")


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
