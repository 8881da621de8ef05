"""A store that can't be reached for a while isn't empty, and keeps nobody waiting who doesn't need it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from starlette.testclient import TestClient
from tests.server.admin import ask

from manytune.store.store import AdapterStore


def test_what_is_in_memory_is_served_and_pins_stay_while_the_store_is_gone(
    admin: TestClient, own_store: AdapterStore, caplog: pytest.LogCaptureFixture
) -> None:
    before = ask(admin).json()["choices"]
    assert admin.post("/v1/adapters/one/pin").status_code == 200
    away = own_store.root.with_name("away")
    own_store.root.rename(away)
    own_store.root.mkdir()  # as an empty mount point is there
    assert ask(admin).json()["choices"] == before
    response = ask(admin, "two")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "store_unreachable")
    assert response.headers["retry-after"] == "5"
    assert "can't be reached now" in response.json()["error"]["message"] and "Mount it again" in caplog.text
    for _ in range(2):
        assert admin.post("/v1/adapters/reload").status_code == 503
    assert caplog.text.count("are served, and no new version") == 1
    health = admin.get("/healthz")
    assert (health.status_code, "can't be read" in health.text) == (200, True)
    assert "manytune_store_reachable 0.0" in admin.get("/metrics").text
    assert admin.get("/v1/models/one").status_code == 200
    own_store.root.rmdir()
    away.rename(own_store.root)
    own_store.alias("two", "one", move=True)
    reloaded = admin.post("/v1/adapters/reload").json()
    assert admin.get("/healthz").text == "ok\n"
    assert reloaded["changed"] == {
        "added": [],
        "updated": ["one"],
        "removed": [],
    }
    assert ask(admin, "two").status_code == 200
    (one,) = (row for row in admin.get("/v1/adapters").json()["data"] if row["id"] == "one")
    assert one["pinned"] and one["root"] == own_store.resolve("two") and one["errors"] == 0


def test_while_the_store_hangs_the_base_answers(admin: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    is_back, resolve = threading.Event(), AdapterStore.resolve

    def hanging(store: AdapterStore, reference: str) -> str:
        is_back.wait(60)
        return resolve(store, reference)

    monkeypatch.setattr(AdapterStore, "resolve", hanging)
    with ThreadPoolExecutor(12) as clients:
        waiting = [clients.submit(ask, admin) for _ in range(12)]  # more than a server has threads
        try:
            assert ask(admin, "base").status_code == 200
            assert admin.get("/healthz").status_code == 200
            assert not any(one.done() for one in waiting)
        finally:
            is_back.set()
        assert {one.result().status_code for one in waiting} <= {200, 429}
