"""Liveness and readiness."""

from starlette.testclient import TestClient
from tests.server.api_client import ROOT
from tests.server.world import app_of

from manytune.server.access.auth import Keys


def test_health_and_readiness_need_no_key(base, store):
    with TestClient(app_of(base, store, Keys([ROOT]))) as client:
        assert client.get("/healthz").text == "ok\n"
        assert client.get("/readyz").text == "ready\n"
        service = client.app.state.service
    assert not service.loop.is_ready
