"""Nothing without a key, nothing beyond a key's rights, and limits with the time to wait."""

import hashlib

import pytest
from starlette.testclient import TestClient
from tests.server.world import app_of, routes_of

from manytune.server.access.auth import Key, Keys
from manytune.server.middleware import KEY_PATHS, PUBLIC_PATHS

CHAT = {"model": "one", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2}


def key(name, **rights):
    return Key(name=name, sha256=hashlib.sha256(name.encode()).hexdigest(), **rights)


def bearer(name):
    return {"authorization": f"Bearer {name}"}


KEYS = [
    key("root", admin=True),
    key("free"),
    key("narrow", models=("one", "b*")),
    key("slow", requests_per_minute=2),
    key("single", concurrent=1),
]


@pytest.fixture
def app(base, store):
    return app_of(base, store, Keys(KEYS))


@pytest.fixture
def guarded(app):
    with TestClient(app) as client:
        yield client


def test_every_route_but_the_public_ones_is_denied_without_a_key(app, guarded):
    routes = routes_of(app)
    assert len(routes) > 12
    for method, path in routes:
        for headers in (
            {},
            bearer("wrong"),
            bearer(""),
            {"authorization": "Basic free"},
            {"authorization": "free"},
        ):
            response = guarded.request(method, path, headers=headers)
            assert (response.status_code == 401) == (path not in PUBLIC_PATHS), f"{method} {path}"
            if response.status_code == 401:
                assert response.json()["error"]["type"] == "authentication_error"
                assert response.headers["www-authenticate"] == "Bearer"


def test_routes_that_nobody_listed_are_for_admins_only(app, guarded):
    app.add_api_route("/v1/new", lambda: "secret")
    assert guarded.get("/v1/new", headers=bearer("free")).status_code == 403
    assert guarded.get("/v1/new", headers=bearer("root")).status_code == 200
    for method, path in routes_of(app):
        if path not in PUBLIC_PATHS and not KEY_PATHS.fullmatch(path):
            assert guarded.request(method, path, headers=bearer("free")).status_code == 403


def test_admin_routes_are_off_without_an_admin_key(client):
    response = client.post("/v1/adapters/one/unload")
    assert response.status_code == 403 and response.json()["error"]["code"] == "admin_key_required"
    assert client.get("/metrics").status_code == 200  # a server without keys listens to its own machine


def test_a_key_sees_and_asks_only_its_models(guarded):
    listed = guarded.get("/v1/models", headers=bearer("narrow")).json()["data"]
    assert [model["id"] for model in listed] == ["base", "one"]
    asked = {
        model: guarded.post("/v1/chat/completions", json={**CHAT, "model": model}, headers=bearer("narrow"))
        for model in ("one", "two", "absent")
    }
    assert asked["one"].status_code == 200
    assert asked["two"].status_code == asked["absent"].status_code == 404
    assert (
        asked["two"].json()["error"]["message"].replace("two", "absent")
        == asked["absent"].json()["error"]["message"]
    )
    assert guarded.get("/v1/models/two", headers=bearer("narrow")).status_code == 404
    compared = guarded.post(
        "/v1/compare", json={"models": ["one", "two"], "messages": CHAT["messages"]}, headers=bearer("narrow")
    )
    assert compared.status_code == 404


def test_a_rate_limit_answers_429_with_the_seconds_to_wait(guarded):
    codes = [guarded.get("/v1/models", headers=bearer("slow")) for _ in range(3)]
    assert [response.status_code for response in codes] == [200, 200, 429]
    assert 1 <= int(codes[2].headers["retry-after"]) <= 30
    assert codes[2].json()["error"]["type"] == "rate_limit_error"
    assert guarded.get("/v1/models", headers=bearer("free")).status_code == 200


def test_a_concurrency_limit_counts_requests_until_they_have_ended(app, guarded):
    with pytest.MonkeyPatch.context() as patch:
        inner = []

        def ask_again(name, **_):
            inner.append(guarded.get("/v1/models", headers=bearer("single")))
            raise LookupError

        # While one request runs, its key asks again.
        patch.setattr(app.state.service.adapters, "acquire", ask_again)
        with pytest.raises(LookupError):
            guarded.post("/v1/chat/completions", json=CHAT, headers=bearer("single"))
    assert inner[0].status_code == 429 and inner[0].headers["retry-after"] == "1"
    assert guarded.post("/v1/chat/completions", json=CHAT, headers=bearer("single")).status_code == 200
