"""What a server doesn't do it refuses by name, in the form that OpenAI's clients know."""

import tracemalloc

import pytest
from starlette.testclient import TestClient
from tests.server.world import app_of

from manytune.server.schema import ChatRequest, CompletionRequest

CHAT = {"model": "base", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2}

# From OpenAI's API reference: all parameters of the two routes.
DOCUMENTED_CHAT = """
audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens max_tokens messages metadata
modalities model n parallel_tool_calls prediction presence_penalty prompt_cache_key prompt_cache_retention
reasoning_effort response_format safety_identifier seed service_tier stop store stream stream_options temperature
tool_choice tools top_logprobs top_p user verbosity web_search_options
"""
DOCUMENTED_COMPLETIONS = """
best_of echo frequency_penalty logit_bias logprobs max_tokens model n presence_penalty prompt seed stop stream
stream_options suffix temperature top_p user
"""


def refused(client, path="/v1/chat/completions", status=400, **body):
    response = client.post(path, json=body)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(
    ("body", "documented"), [(ChatRequest, DOCUMENTED_CHAT), (CompletionRequest, DOCUMENTED_COMPLETIONS)]
)
def test_every_documented_field_is_honoured_or_refused_by_name(body, documented):
    assert set(documented.split()) <= set(body.model_fields) | set(body.refused)


@pytest.mark.parametrize("name", sorted(ChatRequest.refused))
def test_a_field_that_is_not_implemented_is_refused_unless_it_is_null(client, name):
    error = refused(client, **CHAT, **{name: "something"})
    assert error["param"] == name and error["code"] == "unsupported_parameter"
    assert client.post("/v1/chat/completions", json={**CHAT, name: None}).status_code == 200


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"nonsense": 1}, "unknown_parameter", "nonsense"),
        ({"temperature": 3}, "invalid_value", "temperature"),
        ({"temperature": "0"}, "invalid_value", "temperature"),
        ({"stream": 1}, "invalid_value", "stream"),
        ({"top_logprobs": 2}, "invalid_value", "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "invalid_value", "stream_options"),
        ({"max_completion_tokens": 3}, "invalid_value", "max_tokens"),
        ({"max_tokens": 1000}, "invalid_value", "max_tokens"),
        ({"n": 1000}, "invalid_value", "n"),
        ({"logit_bias": {"x": 1}}, "invalid_value", "logit_bias"),
        ({"logit_bias": {"12345": 1}}, "invalid_value", None),
        ({"stop": ""}, "invalid_value", None),
        ({"stop": ["a"] * 5}, "invalid_value", None),
        ({"messages": []}, "invalid_value", "messages"),
        ({"task": "x"}, "invalid_value", "task"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "invalid_value", "messages.0.role"),
        ({"messages": [{"role": "user", "content": "a", "name": "x"}]}, "unsupported_parameter", "name"),
        ({"messages": [{"role": "user", "content": "a" * 60}]}, "context_length_exceeded", None),
    ],
)
def test_a_wrong_request_is_refused_with_the_field_to_blame(client, changes, code, param):
    error = refused(client, **{**CHAT, **changes})
    assert error["code"] == code and error["type"] == "invalid_request_error"
    if param is not None:
        assert error["param"] == param


@pytest.mark.parametrize(
    ("path", "prompt"),
    [("/v1/chat/completions", {"messages": CHAT["messages"]}), ("/v1/completions", {"prompt": ["a", "b"]})],
)
def test_more_answers_than_there_is_memory_for_are_refused_at_once(client, path, prompt):
    tracemalloc.start()
    error = refused(client, path, model="base", n=1_000_000, **prompt)
    assert (error["code"], error["param"]) == ("invalid_value", "n")
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()
    assert refused(client, path, model="base", n=10**15, **prompt)["message"] == error["message"]


@pytest.mark.parametrize("model", ["three", "../one", "", "one/", "x" * 5000, "on\u0000e"])
def test_an_unknown_model_is_not_found(client, model):
    error = refused(client, status=404, **{**CHAT, "model": model})
    assert error["code"] == "model_not_found" and error["param"] == "model"


def test_tokens_that_the_base_does_not_have_and_empty_prompts_are_refused(client):
    for prompt in ([99], [-1], [], [[]], ""):
        error = refused(client, "/v1/completions", model="base", prompt=prompt, max_tokens=2)
        assert error["type"] == "invalid_request_error"


def test_json_that_is_broken_or_deep_and_unknown_addresses_are_refused(client):
    headers = {"content-type": "application/json"}
    for content in ("{", "[" * 100_000, "null", '"a"', "[]"):
        response = client.post("/v1/chat/completions", content=content, headers=headers)
        assert response.status_code == 400 and "error" in response.json()
    assert client.get("/v1/chat/completions").json()["error"]["code"] == "method_not_allowed"
    assert client.get("/v2").status_code == 403


def test_a_body_that_is_too_large_is_refused_whatever_its_length_says(base, store):
    with TestClient(app_of(base, store, max_body_bytes=1000), base_url="http://localhost") as client:
        headers = {"content-type": "application/json"}
        whole = client.post("/v1/chat/completions", content=b"x" * 1001, headers=headers)
        pieces = client.post("/v1/chat/completions", content=iter([b"x" * 600] * 2), headers=headers)
        assert whole.status_code == pieces.status_code == 413
        assert whole.json()["error"]["code"] == "body_too_large"
        for length in ("²", "9" * 5000, "-1"):  # no number that Python reads quietly
            told = {**headers, "content-length": length.encode()}
            assert client.post("/v1/chat/completions", content=b"{}", headers=told).status_code == 413


def test_a_page_elsewhere_cannot_reach_a_server_without_keys_under_a_name_of_its_own(client):
    assert client.get("/v1/models", headers={"host": "evil.example"}).status_code == 400


def test_requests_have_ids(client):
    given = client.get("/healthz", headers={"x-request-id": "mine-1"})
    assert given.headers["x-request-id"] == "mine-1"
    assert len(client.get("/healthz", headers={"x-request-id": "a b"}).headers["x-request-id"]) == 32
