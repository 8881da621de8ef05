"""A line for each request, as JSON; what was asked and answered isn't in it unless the operator wants that."""

import json
import logging

import pytest
from starlette.testclient import TestClient
from tests.server.world import app_of

from manytune.server.logs import JsonLines

BODY = {"model": "one", "messages": [{"role": "user", "content": "qrs"}], "max_tokens": 3, "user": "u-7"}


def lines(caplog):
    return [
        json.loads(JsonLines().format(record))
        for record in caplog.records
        if record.name.startswith("manytune.server")
    ]


@pytest.mark.parametrize("log_prompts", [False, True])
def test_prompts_and_answers_are_logged_only_on_request(base, store, caplog, log_prompts):
    caplog.set_level(logging.INFO)
    with TestClient(app_of(base, store, log_prompts=log_prompts), base_url="http://localhost") as client:
        caplog.clear()
        answer = client.post("/v1/chat/completions", json=BODY, headers={"x-request-id": "mine"}).json()
    found = lines(caplog)
    (request,) = [line for line in found if line["message"] == "request"]
    assert request["request_id"] == "mine" and request["status"] == 200 and request["model"] == "one"
    assert request["user"] == "u-7" and request["completion_tokens"] == answer["usage"]["completion_tokens"]
    if log_prompts:
        assert [line["message"] for line in found] == ["prompt", "answers", "request"]
        assert found[0]["messages"] == BODY["messages"] and found[0]["request_id"] == "mine"
        assert found[1]["answers"] == [answer["choices"][0]["message"]["content"]]
    else:
        assert "qrs" not in json.dumps(found)


def test_a_refused_request_has_its_line_and_a_failure_its_traceback(base, store, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    app = app_of(base, store)
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
        client.post("/v1/chat/completions", json={**BODY, "model": "absent"})

        def fail(name, **_):
            raise LookupError("a defect")

        monkeypatch.setattr(app.state.service.adapters, "acquire", fail)
        response = client.post("/v1/chat/completions", json=BODY)
    assert response.status_code == 500 and response.json()["error"]["code"] == "internal_error"
    assert "a defect" not in response.text
    found = lines(caplog)
    assert next(line["status"] for line in found if line["message"] == "request") == 404
    assert any("a defect" in line.get("traceback", "") for line in found)
