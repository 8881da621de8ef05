"""A server on a store on shared storage: new versions, adapters that aren't here yet, and storage that is away."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from tests.server.api_client import ROOT, ROOT_HEADERS
from tests.server.world import alone, app_of, plain_ids, save_base
from tests.store.adapters_made import make_adapter

from manytune.server.access.auth import Keys
from manytune.store.base import Base
from manytune.store.remote.store import SharedStore
from manytune.store.store import AdapterStore


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return save_base(tmp_path_factory.mktemp("served") / "tiny")


@pytest.fixture(scope="module")
def made(base: Base, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("made")
    return [make_adapter(folder / str(seed), base, seed=seed) for seed in range(3)]


@pytest.fixture
def elsewhere(made: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SharedStore:
    """The store as another machine has it."""
    monkeypatch.setenv("MANYTUNE_CACHE", str(tmp_path / "another machine"))
    store = SharedStore(f"memory://bucket-{secrets.token_hex(4)}/adapters")
    store.add(made[0], name="one")
    store.add(made[1], name="two")
    monkeypatch.setenv("MANYTUNE_CACHE", str(tmp_path / "this machine"))
    return store


@pytest.fixture
def served(elsewhere: SharedStore) -> SharedStore:
    store = SharedStore(elsewhere.location)
    store._objects.pauses = ()
    return store


@pytest.fixture
def client(base: Base, served: SharedStore) -> Iterator[TestClient]:
    with TestClient(app_of(base, served, Keys([ROOT])), headers=ROOT_HEADERS) as client:
        yield client


def ask(client: TestClient, model: str) -> Any:
    body = {"model": model, "prompt": "hello", "max_tokens": 12, "temperature": 0}
    return client.post("/v1/completions", json=body)


def expected(base: Base, folder: Path, adapter: Path) -> str:
    """The answer with an adapter from a store in a directory."""
    store = AdapterStore(folder)
    store.add(adapter, name="it", move=True)
    return alone(base, store, "it", plain_ids(base, "hello"), max_new_tokens=12).text


def cut_off(store: SharedStore, patch: pytest.MonkeyPatch) -> None:
    def away(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no route to host")

    for operation in ("find", "cat_file", "pipe_file"):
        patch.setattr(store._objects._files, operation, away)


def test_adapters_are_listed_at_once_fetched_when_requested_and_followed(
    base: Base,
    made: list[Path],
    elsewhere: SharedStore,
    served: SharedStore,
    client: TestClient,
    tmp_path: Path,
) -> None:
    assert {"one", "two"} <= {model["id"] for model in client.get("/v1/models").json()["data"]}
    assert not list(served.root.glob("objects/*/*")), "to list them takes none of their files"
    assert ask(client, "one").json()["choices"][0]["text"] == expected(base, tmp_path / "local", made[0])
    assert len(list(served.root.glob("objects/*/*"))) == 1
    elsewhere.add(made[2], name="one", move=True)
    elsewhere.unalias("two")
    assert client.post("/v1/adapters/reload").json()["changed"] == {
        "added": [],
        "updated": ["one"],
        "removed": ["two"],
    }
    assert ask(client, "one").json()["choices"][0]["text"] == expected(base, tmp_path / "local", made[2])
    assert ask(client, "two").status_code == 404


def test_while_the_storage_is_away_what_is_here_is_served_and_the_server_says_so(
    client: TestClient, served: SharedStore, elsewhere: SharedStore, caplog: pytest.LogCaptureFixture
) -> None:
    before = ask(client, "one").json()["choices"][0]["text"]
    assert client.get("/healthz").text == "ok\n"
    assert "manytune_store_reachable 1.0" in client.get("/metrics").text
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.WARNING):
        cut_off(served, patch)
        for _ in range(2):
            assert client.post("/v1/adapters/reload").status_code == 503
        assert caplog.text.count("are served, and no new version") == 1
        health = client.get("/healthz")
        assert (health.status_code, "can't be read" in health.text) == (200, True)
        assert "manytune_store_reachable 0.0" in client.get("/metrics").text
        assert ask(client, "one").json()["choices"][0]["text"] == before
        refused = ask(client, "two")
        assert refused.status_code == 503 and refused.headers["Retry-After"]
        assert refused.json()["error"]["code"] == "store_unreachable"
        assert "bucket" not in refused.text
    elsewhere.alias("two", "three")
    assert client.post("/v1/adapters/reload").json()["changed"]["added"] == ["three"]
    assert client.get("/healthz").text == "ok\n"
    assert [ask(client, name).status_code for name in ("two", "three")] == [200, 200]


def test_credentials_that_have_expired_arent_an_adapters_fault(
    client: TestClient, served: SharedStore, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        raise PermissionError("arn:aws:iam::1:user/me isn't authorised")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(served._objects._files, "cat_file", refused)
        answer = ask(client, "one")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unreachable")
        assert "arn:aws" not in answer.text and "arn:aws" in caplog.text
    assert ask(client, "one").status_code == 200
    rows = client.get("/v1/adapters").json()["data"]
    assert [(row["id"], row["errors"], row["unservable"]) for row in rows if row["id"] == "one"] == [
        ("one", 0, None)
    ]


def test_an_adapter_in_memory_is_served_after_its_files_were_evicted(
    client: TestClient, served: SharedStore
) -> None:
    before = ask(client, "one").json()["choices"][0]["text"]
    served._mirror.remove(served.resolve("one"))
    with pytest.MonkeyPatch.context() as patch:
        cut_off(served, patch)
        assert ask(client, "one").json()["choices"][0]["text"] == before
    assert client.post("/v1/adapters/one/unload").json()["unloaded"]
    assert client.post("/v1/adapters/reload").status_code == 200
    assert ask(client, "one").json()["choices"][0]["text"] == before


def test_an_object_that_was_changed_is_refused_and_the_others_are_served(
    client: TestClient, served: SharedStore
) -> None:
    store, digest = served, served.resolve("one")
    (name,) = (
        name for name in store._objects.list("objects") if digest in name and name.endswith(".safetensors")
    )
    store._objects._files.pipe_file(f"{store.location.path}/{name}", b"something else")
    refused = ask(client, "one")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "adapter_unusable")
    assert "isn't what was uploaded" in refused.text and "memory:" not in refused.text
    rows = {row["id"]: row for row in client.get("/v1/adapters").json()["data"]}
    assert (rows["one"]["errors"], rows["two"]["errors"]) == (1, 0)
    assert "isn't what was uploaded" in rows["one"]["unservable"]
    assert "one" not in {model["id"] for model in client.get("/v1/models").json()["data"]}
    assert ask(client, "two").status_code == 200
