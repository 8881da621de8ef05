"""What admins did: kept, listed, and written to the log, refusals included."""

import logging

from starlette.testclient import TestClient
from tests.server.admin import ask
from tests.server.api_client import ROOT
from tests.server.world import app_of

from manytune.server.access.audit import Audit
from manytune.server.access.auth import Keys


def test_actions_and_refusals_are_kept_the_newest_first_and_questions_are_not(admin, caplog):
    ask(admin)
    admin.get("/v1/adapters")
    with caplog.at_level(logging.INFO, "manytune.server.access.audit"):
        admin.post("/v1/adapters/one/pin")
        refused = admin.post("/v1/adapters/one/unload")
    found = admin.get("/v1/audit").json()["data"]
    assert [(one["key"], one["path"].rsplit("/", 1)[1], one["status"]) for one in found] == [
        ("root", "unload", 409),
        ("root", "pin", 200),
    ]
    assert found[0]["request_id"] == refused.headers["x-request-id"]
    logged = [record.fields for record in caplog.records if record.name == "manytune.server.access.audit"]
    assert logged == found[::-1]


def test_the_last_five_hundred_are_kept():
    audit = Audit()
    for number in range(600):
        audit.record(key="root", method="POST", path=f"/{number}", status=200, request_id="", detail=None)
    assert [one["path"] for one in audit.actions()] == [f"/{number}" for number in range(599, 99, -1)]


def test_without_keys_everybody_may_look_and_nobody_may_act(base, store):
    with TestClient(app_of(base, store), base_url="http://localhost") as client:
        for path in ("/v1/adapters", "/v1/adapters/one/versions", "/v1/history", "/v1/audit", "/metrics"):
            assert client.get(path).status_code == 200, path
        assert client.post("/v1/adapters/one/pin").status_code == 403
        assert client.get("/v1/audit").json()["data"] == []  # nobody was an admin


def test_only_admins_see_history_and_audit_where_there_are_keys(base, store):
    plain = ROOT.model_copy(update={"admin": False})
    with TestClient(app_of(base, store, Keys([plain])), headers={"authorization": "Bearer root"}) as client:
        for path in ("/v1/adapters", "/v1/adapters/one/versions", "/v1/history", "/v1/audit"):
            assert client.get(path).status_code == 403, path
