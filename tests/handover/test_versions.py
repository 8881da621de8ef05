"""Names, versions and vLLM in step."""

from __future__ import annotations

import json
from pathlib import Path

from tests.handover.fake_vllm import weights_of
from tests.server.api_client import ROOT_HEADERS
from tests.server.live import events_of, live, until
from tests.server.world import new_version


def ask(client, model="one", **more):
    return client.post("/v1/completions", json={"model": model, "prompt": "ab", **more})


def text(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["text"]


def test_a_new_version_answers_from_the_next_request_on_and_the_former_one_is_unloaded(
    client, front, fake, base, store, tmp_path
):
    former = store.resolve("one")
    assert text(ask(client)) == f"weights {weights_of(store.path('one'))}"
    new_version(store, tmp_path, base, "one", seed=9)
    assert text(ask(client)) == f"weights {weights_of(store.path('one'))}"
    assert former in fake.adapters and store.resolve("one") in fake.adapters
    front.check(client)
    front.check(client)
    assert set(fake.adapters) == {store.resolve("one")}
    assert not (front.copies / former).exists()


def test_the_watcher_loads_the_new_version_of_an_adapter_that_vllm_has_and_no_other(
    client, front, fake, base, store, tmp_path
):
    ask(client)
    for name, seed in (("one", 8), ("two", 9)):
        new_version(store, tmp_path, base, name, seed=seed)
    assert front.check(client) == {"added": [], "updated": ["one", "two"], "removed": []}
    assert store.resolve("one") in fake.adapters and store.resolve("two") not in fake.adapters


def test_a_running_stream_keeps_its_version_while_its_name_gets_another(front, fake, base, store, tmp_path):
    old = weights_of(store.path("one"))
    fake.paused = True
    with live(front.app) as server:
        body = {"model": "one", "prompt": "ab", "stream": True}
        events = events_of(server.post("/v1/completions", body, **ROOT_HEADERS))
        assert next(events)["choices"][0]["text"] == "weights"
        new_version(store, tmp_path, base, "one", seed=9)
        new = server.post("/v1/completions", {"model": "one", "prompt": "ab"}, **ROOT_HEADERS)
        assert json.load(new)["choices"][0]["text"] == f"weights {weights_of(store.path('one'))}"
        for _ in range(3):
            server.post("/v1/adapters/reload", {}, **ROOT_HEADERS).read()
        assert len(fake.adapters) == 2
        fake.paused = False
        assert next(events)["choices"][0]["text"] == old
        list(events)
        for _ in range(2):
            server.post("/v1/adapters/reload", {}, **ROOT_HEADERS).read()
        assert set(fake.adapters) == {store.resolve("one")}


def test_a_client_that_hangs_up_lets_go_of_its_version(front, fake, store):
    fake.paused = True
    with live(front.app) as server:
        body = {"model": "one", "prompt": "ab", "stream": True}
        next(events_of(server.post("/v1/completions", body, **ROOT_HEADERS)))
        assert front.versions.in_use(store.resolve("one")) == 1
        server.hang_up()
        until(lambda: front.versions.in_use(store.resolve("one")) == 0)


def test_the_resolvers_copy_names_the_base_as_vllm_does_and_shares_the_tensors_file(client, front, store):
    ask(client)
    copy = front.copies / store.resolve("one")
    assert json.loads((copy / "adapter_config.json").read_text())["base_model_name_or_path"] == "the base"
    assert sorted(path.name for path in copy.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    tensors = "adapter_model.safetensors"
    assert (copy / tensors).samefile(store.path("one") / tensors)


def test_an_adapter_that_vllm_has_found_by_itself_is_no_error(client, fake, store):
    fake.adapters[store.resolve("one")] = "found before"
    assert text(ask(client)) == "weights found before"


def test_an_adapter_that_vllm_refuses_is_reported_with_its_reason_until_it_takes_it(client, fake, store):
    fake.refusal = "no room"
    answer = ask(client)
    assert answer.status_code == 409 and "vLLM refuses it: no room" in answer.json()["error"]["message"]
    listed = {one["id"]: one for one in client.get("/v1/adapters").json()["data"]}
    assert listed["one"]["unservable"] == "vLLM refuses it: no room" and listed["two"]["unservable"] is None
    fake.refusal = None
    assert text(ask(client)) == f"weights {weights_of(store.path('one'))}"
    assert [one["id"] for one in client.get("/v1/models").json()["data"]] == ["base", "one", "two"]


def test_an_adapter_that_cannot_be_served_says_why_and_is_no_model(client, front, base, store, tmp_path):
    from tests.store.adapters_made import make_adapter

    store.add(make_adapter(tmp_path / "dora", base, use_dora=True), name="dora")
    store.add(make_adapter(tmp_path / "wide", base, r=12), name="wide")
    front.check(client)
    assert "use_dora" in ask(client, "dora").json()["error"]["message"]
    assert (
        "its rank is 12, and vLLM was started for up to 8" in ask(client, "wide").json()["error"]["message"]
    )
    assert [one["id"] for one in client.get("/v1/models").json()["data"]] == ["base", "one", "two"]


def test_a_damaged_file_is_refused_before_vllm_sees_it(client, fake, store):
    tensors: Path = store.path("one") / "adapter_model.safetensors"
    tensors.chmod(0o644)
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1
    tensors.write_bytes(content)
    answer = ask(client)
    assert answer.status_code == 409 and "changed or damaged" in answer.json()["error"]["message"]
    assert not fake.adapters


def test_what_vllm_has_is_served_while_the_store_is_gone(client, store):
    before = text(ask(client))
    away = store.root.with_name("away")
    store.root.rename(away)
    assert text(ask(client)) == before
    assert client.post("/v1/adapters/reload", headers=ROOT_HEADERS).status_code == 503
    refused = ask(client, "two")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unreachable")
    assert client.get("/healthz").text.splitlines()[1:] != []
    assert "manytune_store_reachable 0.0" in client.get("/metrics").text
    away.rename(store.root)
    assert text(ask(client, "two")) == f"weights {weights_of(store.path('two'))}"
