"""Errors have the status, code and field that OpenAI's clients expect."""

import tracemalloc

import pytest

from manytune.errors import (
    BaseMismatchError,
    CacheFullError,
    ConfigError,
    ContextLengthError,
    RequestError,
    RunError,
    StoreError,
    TemplateError,
)
from manytune.server.http_errors import http_error_of

CHAT = {"model": "base", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2}


def refused(client, path="/v1/chat/completions", status=400, **body):
    response = client.post(path, json=body)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


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
        ({"messages": [{"role": "function", "content": "a"}]}, "invalid_value", "messages.0.role"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "invalid_value", "messages"),
        (
            {"messages": [{"role": "user", "content": "a", "refusal": "x"}]},
            "unsupported_parameter",
            "refusal",
        ),
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


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (CacheFullError, 429, "adapter_memory_full"),
        (ContextLengthError, 400, "context_length_exceeded"),
        (RequestError, 400, "invalid_value"),
        (TemplateError, 400, "invalid_prompt"),
        (StoreError, 409, "adapter_unusable"),
        (BaseMismatchError, 409, "adapter_unusable"),
        (ConfigError, 409, "adapter_unusable"),
        (RunError, 500, "internal_error"),
    ],
)
@pytest.mark.parametrize("message", ["it may come to more positions than there are", "something else"])
def test_status_and_code_depend_on_the_kind_of_error_and_not_on_its_message(error, status, code, message):
    found = http_error_of(error(message))
    assert (found.status, found.code, found.message) == (status, code, message)
    assert found.headers == ({"Retry-After": "1"} if status == 429 else {})
