"""Whatever a client sends, the answer is an answer or a refusal, never a failure of the server."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.random_cases import cases

from manytune.server.bodies.chat_schema import ChatRequest, CompareRequest
from manytune.server.bodies.schema import CompletionRequest

ROUTES = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/compare": CompareRequest,
}
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 70),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.just("abc"),
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
LIKELY = {
    "model": st.sampled_from(["base", "one", "two"]),
    "models": st.lists(st.sampled_from(["base", "one", "two"]), min_size=1, max_size=3, unique=True),
    "prompt": st.one_of(
        st.text(max_size=9), st.lists(st.integers(-1, 30), max_size=5), st.lists(st.text(max_size=3))
    ),
    "messages": st.lists(
        st.fixed_dictionaries(
            {
                "role": st.sampled_from(["system", "user", "assistant", "developer"]),
                "content": st.text(max_size=9),
            }
        ),
        max_size=3,
    ),
    "fields": st.dictionaries(st.sampled_from(["text", "x"]), JSON, max_size=2),
    "logit_bias": st.dictionaries(st.integers(-1, 40).map(str), st.floats(-110, 110), max_size=3),
    "tools": st.lists(
        st.fixed_dictionaries(
            {
                "type": st.sampled_from(["function", "custom"]),
                "function": st.fixed_dictionaries({"name": st.just("f")}),
            }
        ),
        max_size=2,
    ),
    "tool_choice": st.sampled_from(
        ["none", "auto", "required", "any", {"type": "function", "function": {"name": "f"}}]
    ),
    "response_format": st.fixed_dictionaries(
        {"type": st.sampled_from(["text", "json_object", "json_schema", "xml"])},
        optional={"json_schema": st.fixed_dictionaries({"name": st.just("a"), "schema": JSON})},
    ),
    "regex": st.sampled_from(["a+", "[a-c]{2}", "(", "(?=a)b", "1"]),
    "grammar": st.sampled_from(['start: "a"+', "start: b", "", "start: /[a-z]/ start?"]),
    "stop_token_ids": st.lists(st.integers(-1, 40), max_size=3),
    "stop": st.text(max_size=3) | st.lists(st.text(max_size=2), max_size=5),
}
USUAL = {"max_tokens": 4}


@st.composite
def bodies(draw, schema):
    body = {**USUAL}
    for name in ("model", "models", "prompt", "messages"):
        if name in schema.model_fields:
            body[name] = draw(LIKELY[name])
    names = sorted({*schema.model_fields, *schema.refused} - {"max_tokens"})
    for name in draw(st.lists(st.sampled_from(names), max_size=4, unique=True)):
        body[name] = draw(LIKELY.get(name, SCALARS) | JSON)
    return body


@pytest.mark.parametrize("path", ROUTES)
@given(data=st.data())
@settings(max_examples=cases(20), deadline=None, suppress_health_check=list(HealthCheck))
def test_any_body_is_answered_or_refused(client, path, data):
    body = data.draw(bodies(ROUTES[path]))
    content = json.dumps(body)
    response = client.post(path, content=content.encode(), headers={"content-type": "application/json"})
    assert response.status_code in (200, 400, 404, 409), response.text
    if response.status_code != 200:
        assert response.json()["error"]["message"]
    elif body.get("stream", path == "/v1/compare"):
        assert response.text.endswith("data: [DONE]\n\n") and '"error"' not in response.text


@given(content=st.binary(max_size=40) | st.text(max_size=40).map(str.encode))
@settings(max_examples=cases(20), deadline=None, suppress_health_check=list(HealthCheck))
def test_any_bytes_are_refused(client, content):
    response = client.post(
        "/v1/chat/completions", content=content, headers={"content-type": "application/json"}
    )
    assert response.status_code == 400 and response.json()["error"]["code"]
