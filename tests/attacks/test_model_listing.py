"""Finding 7: listings are answered from memory, however many adapters there are, and still say what is true."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from tests.server.api_client import ROOT, ROOT_HEADERS
from tests.server.world import app_of, fill_store, new_version

from manytune.server.access.auth import Keys
from manytune.store.labels import Labels
from manytune.store.manifest import Manifest
from manytune.store.store import AdapterStore

MANY = 300


@pytest.fixture(scope="module")
def crowded(base, tmp_path_factory: pytest.TempPathFactory) -> AdapterStore:
    """A store with many names."""
    store = fill_store(tmp_path_factory.mktemp("crowded"), base)
    names = store.root / "names"
    for number in range(MANY):  # as `alias` writes them
        (names / f"many-{number:03}").write_text((names / "one").read_text())
    return store


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often the store's files are read."""
    reads = {"manifests": 0, "names": 0}
    read, names = Manifest.read, Labels.names

    def count_manifest(path: Path) -> Manifest:
        reads["manifests"] += 1
        return read(path)

    def count_names(self: Labels) -> dict[str, list[str]]:
        reads["names"] += 1
        return names(self)

    monkeypatch.setattr(Manifest, "read", staticmethod(count_manifest))
    monkeypatch.setattr(Labels, "names", count_names)
    return reads


@pytest.fixture(scope="module")
def asked(base, crowded) -> Iterator[TestClient]:
    with TestClient(app_of(base, crowded, Keys([ROOT])), headers=ROOT_HEADERS) as client:
        assert client.get("/v1/models").status_code == 200  # the catalogue is there
        yield client


@pytest.mark.parametrize(
    "path", ["/v1/models", "/v1/adapters", "/v1/models/many-007", "/v1/models/base", "/"]
)
def test_a_listing_reads_nothing_of_the_store(asked: TestClient, counted: dict[str, int], path: str) -> None:
    for _ in range(3):
        assert asked.get(path).status_code == 200
    assert counted == {"manifests": 0, "names": 0}


def test_an_unknown_name_is_not_sought_among_all_names(asked: TestClient, counted: dict[str, int]) -> None:
    body = {"model": "absent", "messages": [{"role": "user", "content": "a"}]}
    assert asked.get("/v1/models/absent").status_code == 404
    assert asked.post("/v1/chat/completions", json=body).status_code == 404
    assert counted == {"manifests": 0, "names": 0}


def test_comparing_with_fields_reads_one_manifest_and_no_names(
    asked: TestClient, counted: dict[str, int]
) -> None:
    """What the first adapter's template is was found by reading all names and tags, on the event loop."""
    asked.post("/v1/compare", json={"models": ["one", "base"], "fields": {"a": "b"}, "max_tokens": 1})
    assert counted["names"] == 0


def test_everything_is_listed_in_order_and_only_to_those_who_may_use_it(asked: TestClient, crowded) -> None:
    listed = [model["id"] for model in asked.get("/v1/models").json()["data"]]
    assert listed == ["base", *sorted(crowded.names())] and len(listed) == MANY + 3
    one = asked.get("/v1/models").json()["data"][-2]
    assert one == asked.get("/v1/models/one").json() and one["root"] == crowded.resolve("one")
    states = asked.get("/v1/adapters").json()["data"]
    assert [state["id"] for state in states] == sorted(crowded.names())


def test_a_listing_follows_the_store_when_the_watcher_looks(base, tmp_path: Path) -> None:
    store = fill_store(tmp_path, base)
    with TestClient(app_of(base, store, Keys([ROOT])), headers=ROOT_HEADERS) as client:

        def listed() -> dict[str, str]:
            return {one["id"]: one.get("root", "") for one in client.get("/v1/models").json()["data"]}

        def states() -> dict[str, dict]:
            return {one["id"]: one for one in client.get("/v1/adapters").json()["data"]}

        before = listed()
        new_version(store, tmp_path, base, "one", 9)
        new_version(store, tmp_path, base, "three", 8)
        store.unalias("two")
        store.add_scores("three", {"exact": 0.5})
        assert client.get("/v1/models/three").json()["root"] == store.resolve(
            "three"
        )  # asked for by name, at once
        client.post("/v1/adapters/reload")
        assert set(listed()) == {"base", "one", "three"} and listed()["one"] != before["one"]
        assert states()["three"]["scores"]["exact"] == 0.5
        store.add_scores("three", {"exact": 0.75})  # the same version, with other scores
        client.post("/v1/adapters/reload")
        assert states()["three"]["scores"]["exact"] == 0.75
        file = store.path("three") / "manifest.json"
        file.write_text("{}")
        client.post("/v1/adapters/reload")
        assert "three" not in listed() and states()["three"]["unservable"]
        assert states()["three"]["last_error"] == states()["three"]["unservable"]


def test_an_adapter_that_a_request_shows_to_be_damaged_leaves_the_list(base, tmp_path: Path) -> None:
    store = fill_store(tmp_path, base)
    with TestClient(app_of(base, store), base_url="http://localhost") as client:
        assert "one" in client.get("/v1/models").text
        file = store.path("one") / "adapter_model.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        body = {"model": "one", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
        assert client.post("/v1/chat/completions", json=body).status_code == 409
        assert '"id":"one"' not in client.get("/v1/models").text


def test_listing_many_is_watched(base, crowded, watched) -> None:
    from tests.server.live import live

    with live(app_of(base, crowded)) as server, watched(server.port):
        import http.client

        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        for _ in range(20):
            connection.request("GET", "/v1/models")
            assert len(json.loads(connection.getresponse().read())["data"]) == MANY + 3
        connection.close()


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": {"names": 5}},
        {"labels": {"names": [{}]}},
        {"scores": {"a": 10**400}},
        {"templates": {"a": 5}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_a_manifest_says_hides_no_other_adapter(base, own_store, changes: dict[str, object]) -> None:
    change_manifest(own_store, "two", changes)
    with TestClient(app_of(base, own_store, Keys([ROOT])), headers=ROOT_HEADERS) as client:
        assert [one["id"] for one in client.get("/v1/models").json()["data"]] == ["base", "one"]
        assert "manifest" in client.get("/v1/models/two").json()["error"]["message"]


def test_an_adapter_whose_reading_fails_unforeseen_hides_no_other(
    base, own_store, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, two = Manifest.read, own_store.path("two") / "manifest.json"

    def fail_for_two(path: Path) -> Manifest:
        if path == two:
            raise TypeError("nobody thought of this")
        return read(path)

    with monkeypatch.context() as patched:
        patched.setattr(Manifest, "read", staticmethod(fail_for_two))
        with TestClient(app_of(base, own_store, Keys([ROOT])), headers=ROOT_HEADERS) as client:
            assert [one["id"] for one in client.get("/v1/models").json()["data"]] == ["base", "one"]


def change_manifest(store: AdapterStore, name: str, changes: dict[str, object]) -> None:
    file = store.path(name) / "manifest.json"
    file.chmod(0o644)
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
