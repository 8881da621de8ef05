"""The versions of a name, and the way back to a former one."""

from tests.server.admin import ask, listed
from tests.server.world import new_version


def versions(admin, name="one"):
    return admin.get(f"/v1/adapters/{name}/versions").json()["data"]


def test_a_name_goes_back_to_a_former_version_and_forward_again(admin, base, own_store, tmp_path):
    first = own_store.resolve("one")
    before = ask(admin).json()["choices"]
    new_version(own_store, tmp_path, base, "one", seed=5)
    second = own_store.resolve("one")
    own_store.add_scores("one", {"rouge1": 0.5, "broken": float("nan")})
    admin.post("/v1/adapters/reload")
    found = versions(admin)
    assert [(one["root"], one["current"]) for one in found] == [(second, True), (first, False)]
    assert found[0]["scores"] == {"validation_loss": 6.0, "rouge1": 0.5, "broken": None}
    assert found[1]["scores"] == {"validation_loss": 1.0} and found[1]["method"] == "lora"
    answer = admin.post("/v1/adapters/one/rollback", json={"root": first})
    assert answer.json() == {"id": "one", "root": first, "former": second}
    assert own_store.resolve("one") == first == listed(admin)["root"]
    assert ask(admin).json()["choices"] == before
    assert [one["root"] for one in versions(admin)] == [first, second]
    (action,) = (one for one in admin.get("/v1/audit").json()["data"] if one["path"].endswith("rollback"))
    assert action["detail"] == f"one: {second[:12]} to {first[:12]}"
    assert admin.post("/v1/adapters/one/rollback", json={"root": second}).status_code == 200
    assert own_store.resolve("one") == second


def test_only_versions_that_the_name_had_and_that_are_sound_come_back(admin, base, own_store, tmp_path):
    first, other = own_store.resolve("one"), own_store.resolve("two")
    new_version(own_store, tmp_path, base, "one", seed=5)
    refused = admin.post("/v1/adapters/one/rollback", json={"root": other})
    assert refused.status_code == 404 and refused.json()["error"]["code"] == "unknown_version"
    file = own_store.directory(first) / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.chmod(0o644)
    file.write_bytes(content)
    damaged = admin.post("/v1/adapters/one/rollback", json={"root": first})
    assert damaged.status_code == 409 and own_store.resolve("one") != first
    assert admin.post("/v1/adapters/one/rollback", json={"root": "latest"}).status_code == 400
    assert admin.post("/v1/adapters/base/rollback", json={"root": first}).status_code == 400
    assert admin.get("/v1/adapters/three/versions").status_code == 404


def test_a_model_is_listed_with_its_tags_and_scores_as_they_are_now(admin, own_store):
    def model():
        return next(one for one in admin.get("/v1/models").json()["data"] if one["id"] == "one")

    assert model()["tags"] == [] and model()["scores"] == {"validation_loss": 1.0}
    own_store.tag("one", "production", "en")
    own_store.add_scores("one", {"rouge1": 0.5})
    admin.post("/v1/adapters/reload")
    assert model()["tags"] == ["en", "production"] and model()["scores"]["rouge1"] == 0.5
    assert listed(admin)["tags"] == ["en", "production"]


def test_comparing_by_fields_says_what_each_template_made_of_them(admin):
    asked = {"models": ["base", "one"], "fields": {"text": "ab"}, "max_tokens": 1, "stream": False}
    answers = admin.post("/v1/compare", json=asked).json()["answers"]
    assert [one["prompt"] for one in answers] == [[{"role": "user", "content": "ab"}]] * 2
    plain = {**asked, "fields": None, "messages": [{"role": "user", "content": "ab"}]}
    assert all("prompt" not in one for one in admin.post("/v1/compare", json=plain).json()["answers"])
