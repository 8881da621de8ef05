"""The operators' routes."""

from tests.server.admin import ask, listed
from tests.server.world import new_version


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
    file.chmod(0o644)
    file.write_bytes(content)
    wrong = admin.post("/v1/adapters/one/verify")
    assert wrong.status_code == 409 and "changed or damaged" in wrong.json()["error"]["message"]


def test_the_base_is_no_adapter_and_unknown_ones_are_not_found(admin):
    for action in ("load", "unload", "pin", "verify"):
        assert admin.post(f"/v1/adapters/base/{action}").status_code == 400
        assert admin.post(f"/v1/adapters/three/{action}").status_code == 404
