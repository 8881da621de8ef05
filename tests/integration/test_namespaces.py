"""Models with a namespace, `user/adapter`: listed, asked, managed and limited by keys as any other."""

from __future__ import annotations

import hashlib
from urllib.parse import quote

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient
from tests.server.admin import ask, listed
from tests.server.api_client import ROOT, ROOT_HEADERS
from tests.server.world import app_of, fill_store

from manytune.server.access.auth import Key, Keys
from manytune.store.store import AdapterStore

NAMES = ("user/one", "user", "team/two")
OUTSIDE = [
    *("../one", "user/../user", "user/one/more", "user//one", "/user/one", "user/", "user/.."),
    *("..%2Fone", "user%2F..%2Fone", "%2e%2e/one", "user/%2e%2e", "user%00/one"),
]


@pytest.fixture(scope="module")
def served(base, tmp_path_factory):
    return fill_store(tmp_path_factory.mktemp("namespaces"), base, NAMES)


def of(name: str, *models: str) -> Key:
    return Key(name=name, sha256=hashlib.sha256(name.encode()).hexdigest(), models=models)


KEYS = [ROOT, of("team", "team/*"), of("plain", "user*"), of("all", "*")]


@pytest.fixture(scope="module")
def admin(base, served):
    with TestClient(app_of(base, served, Keys(KEYS)), headers=ROOT_HEADERS) as client:
        yield client


def test_they_are_listed_shown_and_answer(admin: TestClient, served: AdapterStore) -> None:
    ids = [one["id"] for one in admin.get("/v1/models").json()["data"]]
    assert ids == ["base", "team/two", "user", "user/one"]
    for path in ("user/one", "user%2Fone"):
        shown = admin.get(f"/v1/models/{path}").json()
        assert (shown["id"], shown["root"]) == ("user/one", served.resolve("user/one"))
    answers = {name: ask(admin, name).json() for name in NAMES}
    assert {name: answer["model"] for name, answer in answers.items()} == {name: name for name in NAMES}
    assert len({answer["choices"][0]["message"]["content"] for answer in answers.values()}) > 1


def test_operators_manage_them(admin: TestClient, served: AdapterStore) -> None:
    for verb, key in (("load", "resident"), ("pin", "pinned"), ("verify", "sound")):
        answer = admin.post(f"/v1/adapters/user/one/{verb}").json()
        assert (answer["id"], answer[key]) == ("user/one", True), verb
    assert listed(admin, "user/one")["pinned"] and not listed(admin, "user")["pinned"]
    assert admin.post("/v1/adapters/user/one/unpin").json()["was_pinned"]
    assert admin.post("/v1/adapters/user/one/unload").json() == {"id": "user/one", "unloaded": True}


def test_an_adapter_may_be_called_like_what_is_done_with_it(admin: TestClient, served: AdapterStore) -> None:
    served.alias("user", "user/load")
    answer = admin.post("/v1/adapters/user/load/load").json()
    assert (answer["id"], answer["root"]) == ("user/load", served.resolve("user"))
    served.unalias("user/load")


def test_metrics_count_each_by_its_whole_name(admin: TestClient) -> None:
    ask(admin, "team/two")
    families = text_string_to_metric_families(admin.get("/metrics").text)
    models = {sample.labels.get("model") for family in families for sample in family.samples}
    assert "team/two" in models and "two" not in models and "team" not in models


@pytest.mark.parametrize("name", OUTSIDE)
def test_what_could_lead_elsewhere_is_no_model(name: str, admin: TestClient) -> None:
    error = ask(admin, name).json()["error"]
    assert error["code"] == "model_not_found"
    path = quote(name, safe="%")  # else the client itself resolves the dots
    assert admin.get(f"/v1/models/{path}").status_code == 404
    assert admin.post(f"/v1/adapters/{path}/load").status_code == 404


def test_a_star_in_a_keys_models_stays_within_a_namespace(admin: TestClient) -> None:
    def models(key: str) -> list[str]:
        headers = {"authorization": f"Bearer {key}"}
        return [one["id"] for one in admin.get("/v1/models", headers=headers).json()["data"]]

    assert models("team") == ["team/two"]
    assert models("plain") == ["user"]
    assert models("all") == ["base", "team/two", "user", "user/one"]
    refused = admin.get("/v1/models/user/one", headers={"authorization": "Bearer plain"})
    assert refused.status_code == 404
