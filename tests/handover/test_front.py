"""Keys, limits, names and metrics before vLLM; everything else passes through."""

from __future__ import annotations

import json

import pytest
from starlette.testclient import TestClient
from tests.handover.conftest import Front
from tests.server.api_client import ROOT, ROOT_HEADERS

from manytune.server.access.auth import Key, Keys

LIMITED = Key(
    name="limited",
    sha256="9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",  # of "test"
    models=("one",),
    requests_per_minute=2,
)


def ask(client, model="one", headers=None, **more):
    body = {"model": model, "prompt": "ab", **more}
    return client.post("/v1/completions", json=body, headers=headers or {})


def test_an_answer_has_the_name_and_version_of_the_model_and_passes_the_rest_through(client, fake, store):
    answer = ask(client, temperature=0, guided_whatever={"a": 1}).json()
    assert answer["model"] == "one"
    assert answer["system_fingerprint"] == f"adapter_{store.resolve('one')[:12]}"
    (sent,) = fake.asked
    assert sent.pop("cache_salt")
    assert sent == {
        "model": store.resolve("one"),
        "prompt": "ab",
        "temperature": 0,
        "guided_whatever": {"a": 1},
    }


@pytest.mark.parametrize("wanted", [True, False])
def test_a_stream_has_names_and_the_counts_of_tokens_only_if_they_were_asked_for(client, store, wanted):
    more = {"stream_options": {"include_usage": True}} if wanted else {}
    lines = ask(client, stream=True, **more).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    assert {event["model"] for event in events} == {"one"}
    assert [bool(event["choices"]) for event in events] == ([True, True, False] if wanted else [True, True])
    assert ("usage" in events[0]) is wanted


def test_requests_tokens_and_vllms_own_metrics_are_at_one_address(client):
    ask(client)
    ask(client, stream=True)
    ask(client, "base")
    text = client.get("/metrics").text
    assert 'manytune_requests_total{model="one",outcome="stop"} 2.0' in text
    assert 'manytune_completion_tokens_total{model="one"} 4.0' in text
    assert 'manytune_prompt_tokens_total{model="base"} 5.0' in text
    assert 'manytune_key_requests_total{key="root"} 3.0' in text
    assert 'manytune_key_tokens_total{key="root"} 21.0' in text
    assert "manytune_adapters_resident 1.0" in text and "manytune_adapter_loads_total 1.0" in text
    assert "vllm:num_requests_running 0.0" in text


def test_vllms_errors_keep_their_status_and_have_the_models_name(client):
    answer = ask(client, max_tokens=7)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "one can't have 7 tokens."


def test_keys_see_their_own_models_and_are_limited(base, store, socket, tmp_path, fake):
    front = Front(base, store, socket, tmp_path / "copies", Keys([ROOT, LIMITED]))
    limited = {"authorization": "Bearer test"}
    with TestClient(front.app) as client:
        assert ask(client).status_code == 401
        assert ask(client, "two", limited).status_code == 404
        assert [one["id"] for one in client.get("/v1/models", headers=ROOT_HEADERS).json()["data"]] == [
            "base",
            "one",
            "two",
        ]
        assert client.get("/v1/adapters", headers=limited).status_code == 403
        assert ask(client, headers=limited, n=3).status_code == 400  # more than it ever has
        assert ask(client, headers=ROOT_HEADERS).status_code == 200
        assert ask(client, headers=limited).status_code == 429  # two have counted


def test_each_tenant_has_cached_prefixes_of_its_own(base, store, socket, tmp_path, fake):
    other = Key(name="other", sha256=LIMITED.sha256)
    front = Front(base, store, socket, tmp_path / "copies", Keys([ROOT, other]))
    with TestClient(front.app) as client:
        for headers in (ROOT_HEADERS, ROOT_HEADERS, {"authorization": "Bearer test"}):
            assert ask(client, headers=headers).status_code == 200
        guess = ask(client, headers={"authorization": "Bearer test"}, cache_salt=fake.asked[0]["cache_salt"])
        assert guess.status_code == 200
    salts = [one["cache_salt"] for one in fake.asked]
    assert salts[0] == salts[1] and len(set(salts)) == 3


def test_without_keys_there_is_one_tenant_and_no_salt(base, store, socket, tmp_path, fake):
    front = Front(base, store, socket, tmp_path / "copies", Keys())
    with TestClient(front.app, base_url="http://localhost") as client:
        assert ask(client).status_code == 200
    assert "cache_salt" not in fake.asked[0]


@pytest.mark.parametrize(
    ("more", "status", "param"),
    [
        ({"max_tokens": 41}, 400, "max_tokens"),
        ({"n": 17}, 400, "n"),
        ({"n": 0}, 400, "n"),
        ({"n": True}, 400, "n"),
        ({"prompt": ["a"] * 9, "n": 2}, 400, "n"),
        ({"prompt": ["a"] * 5}, 429, None),
        ({"model": 3}, 400, "model"),
        ({"model": "nobody"}, 404, "model"),
        ({"chat_template": "{{ 1 }}"}, 400, "chat_template"),
        ({"stream": "yes"}, 400, "stream"),
    ],
)
def test_limits_hold_before_vllm_is_asked(client, fake, more, status, param):
    answer = client.post("/v1/completions", json={"model": "one", "prompt": "ab", **more})
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
    assert not fake.asked


def test_a_vllm_that_is_gone_gives_503(base, store, tmp_path):
    front = Front(base, store, tmp_path / "nothing", tmp_path / "copies", Keys())
    with TestClient(front.app, base_url="http://localhost", raise_server_exceptions=False) as client:
        assert ask(client, "base").status_code == 503
        assert client.get("/readyz").status_code == 503
