"""The operator's routes, and adapters that must not reach the engine."""

import hashlib
import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from starlette.testclient import TestClient
from tests.server.world import app_of, fill_store, new_version
from tests.store.tiny import save_tiny_base

from manytune.server.auth import Key, Keys
from manytune.store.base import load_base
from manytune.store.digests import sha256_file
from manytune.store.resident import read_resident

ADMIN = {"authorization": "Bearer root"}
KEYS = [Key(name="root", sha256=hashlib.sha256(b"root").hexdigest(), admin=True)]


@pytest.fixture
def own_store(base, tmp_path):
    return fill_store(tmp_path, base)


@pytest.fixture
def admin(base, own_store):
    with TestClient(app_of(base, own_store, Keys(KEYS)), headers=ADMIN) as client:
        yield client


def listed(admin, name="one"):
    return next(one for one in admin.get("/v1/adapters").json()["data"] if one["id"] == name)


def ask(admin, model="one"):
    body = {"model": model, "messages": [{"role": "user", "content": "a"}], "max_tokens": 2, "temperature": 0}
    return admin.post("/v1/chat/completions", json={**body, "logit_bias": {"0": -100}})


def test_adapters_are_loaded_and_unloaded_by_hand_or_by_asking(admin, own_store):
    assert not listed(admin)["resident"] and listed(admin)["bytes"] > 0
    assert admin.post("/v1/adapters/one/load").json()["root"] == own_store.resolve("one")
    assert listed(admin)["resident"] and not listed(admin, "two")["resident"]
    assert admin.post("/v1/adapters/one/unload").json()["unloaded"]
    assert not listed(admin)["resident"]
    assert not admin.post("/v1/adapters/one/unload").json()["unloaded"]
    assert ask(admin).status_code == 200 and listed(admin)["resident"]
    assert admin.app.state.service.loop._engine.adapters == (own_store.resolve("one"),)
    admin.post("/v1/adapters/one/unload")
    assert admin.app.state.service.loop._engine.adapters == ()


def test_a_pinned_adapter_stays_and_its_pin_follows_new_versions(admin, base, own_store, tmp_path):
    first = admin.post("/v1/adapters/one/pin").json()["root"]
    refused = admin.post("/v1/adapters/one/unload")
    assert refused.status_code == 409 and refused.json()["error"]["code"] == "adapter_in_use"
    new_version(own_store, tmp_path, base, "one", seed=5)
    changed = admin.post("/v1/adapters/reload").json()["changed"]
    assert changed == {"added": [], "updated": ["one"], "removed": []}
    entry = listed(admin)
    assert entry["root"] != first and entry["resident"] and entry["pinned"]
    assert admin.app.state.service.adapters.cache.resident == (entry["root"],)
    assert admin.post("/v1/adapters/one/unpin").json() == {"id": "one", "pinned": False, "was_pinned": True}
    assert admin.post("/v1/adapters/one/unload").status_code == 200


def test_reload_tells_what_has_come_and_gone(admin, own_store):
    own_store.alias("one", "uno")
    own_store.remove("two")
    changed = admin.post("/v1/adapters/reload").json()["changed"]
    assert changed == {"added": ["uno"], "updated": [], "removed": ["two"]}
    assert ask(admin, "uno").status_code == 200 and ask(admin, "two").status_code == 404


def test_verify_says_what_is_wrong_on_disk(admin, own_store):
    sound = admin.post("/v1/adapters/one/verify").json()
    assert sound["sound"] and sound["tensors"] == 8 and sound["files"] == 2
    file = own_store.path("one") / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    wrong = admin.post("/v1/adapters/one/verify")
    assert wrong.status_code == 409 and "changed or damaged" in wrong.json()["error"]["message"]


def test_the_base_is_no_adapter_and_unknown_ones_are_not_found(admin):
    for action in ("load", "unload", "pin", "verify"):
        assert admin.post(f"/v1/adapters/base/{action}").status_code == 400
        assert admin.post(f"/v1/adapters/three/{action}").status_code == 404


def rewrite(directory, change):
    """Change an adapter's tensors, and its manifest with them, as somebody would who means harm."""
    file = directory / "adapter_model.safetensors"
    tensors = change(load_file(file))
    file.unlink()
    save_file(tensors, file)
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["files"][file.name] = sha256_file(file)
    (directory / "manifest.json").write_text(json.dumps(manifest))


def with_nan(tensors):
    next(iter(tensors.values()))[0, 0] = float("nan")
    return tensors


def with_other_shape(tensors):
    return {
        name: torch.cat([tensor, tensor], 1) if "lora_A" in name else tensor
        for name, tensor in tensors.items()
    }


@pytest.mark.parametrize(
    ("change", "message"), [(with_nan, "aren't finite"), (with_other_shape, "expected|shape|fit")]
)
def test_an_adapter_that_would_break_others_is_refused_and_the_others_answer(
    admin, base, own_store, tmp_path, change, message
):
    bad = tmp_path / "bad"
    shutil.copytree(own_store.path("one"), bad)
    rewrite(bad, change)
    own_store.add(bad, name="bad")
    before = ask(admin, "two").json()["choices"]
    response = ask(admin, "bad")
    error = response.json()["error"]
    assert response.status_code == 409 and error["code"] == "adapter_unusable"
    assert re.search(message, error["message"])
    assert admin.app.state.service.adapters.cache.counters().pinned == 0
    assert ask(admin, "two").json()["choices"] == before


def test_files_changed_in_the_store_are_refused(admin, own_store):
    rewrite(own_store.path("one"), lambda tensors: {name: tensor + 1 for name, tensor in tensors.items()})
    response = ask(admin)
    assert response.status_code == 409 and "manifest was changed" in response.json()["error"]["message"]
    assert admin.app.state.service.adapters.cache.counters().pinned == 0
    assert ask(admin, "two").status_code == 200


def test_links_out_of_the_store_are_refused(admin, own_store, tmp_path):
    directory = own_store.path("one")
    elsewhere = tmp_path / "elsewhere.safetensors"
    (directory / "adapter_model.safetensors").rename(elsewhere)
    (directory / "adapter_model.safetensors").symlink_to(elsewhere)
    assert "symbolic link" in ask(admin).json()["error"]["message"]
    (own_store.root / "names" / "linked").symlink_to(own_store.root / "names" / "two")
    assert ask(admin, "linked").status_code == 404


def test_an_adapter_of_another_base_is_refused(admin, own_store, tmp_path):
    from tests.store.adapters_made import make_adapter

    other = load_base(str(save_tiny_base(tmp_path / "other", seed=5)))
    own_store.add(make_adapter(tmp_path / "foreign", other), name="foreign")
    response = ask(admin, "foreign")
    assert response.status_code == 409 and "another base" in response.json()["error"]["message"]


def test_metrics_count_tokens_requests_and_loads(admin):
    ask(admin)
    ask(admin, "base")
    text = admin.get("/metrics").text
    assert 'manytune_requests_total{model="one",outcome="length"} 1.0' in text
    assert 'manytune_prompt_tokens_total{model="one"} 1.0' in text
    assert 'manytune_completion_tokens_total{model="base"} 2.0' in text
    assert 'manytune_time_to_first_token_seconds_count{model="one"} 1.0' in text
    assert 'manytune_inter_token_seconds_count{model="one"} 1.0' in text
    assert "manytune_adapter_loads_total 1.0" in text and "manytune_running_requests 0.0" in text


def test_health_and_readiness_are_open(base, own_store):
    with TestClient(app_of(base, own_store, Keys(KEYS))) as client:
        assert client.get("/healthz").text == "ok\n"
        assert client.get("/readyz").text == "ready\n"
        service = client.app.state.service
    assert not service.loop.is_ready


def test_an_adapter_that_finds_no_room_beside_those_in_use_is_told_to_come_again(base, own_store):
    size = read_resident(own_store.path("one")).nbytes
    with TestClient(app_of(base, own_store, Keys(KEYS), adapter_memory=size), headers=ADMIN) as admin:
        assert admin.post("/v1/adapters/one/pin").status_code == 200
        refused = ask(admin, "two")
        assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["code"] == "adapter_memory_full"
        assert listed(admin, "two")["errors"] == 0  # it isn't to blame
        admin.post("/v1/adapters/one/unpin")
        assert ask(admin, "two").status_code == 200
