"""Every parameter of OpenAI's API is a field, or is refused by its name."""

import inspect

import pytest
from openai.resources import Completions, Embeddings
from openai.resources.chat import Completions as ChatCompletions

from manytune.server.bodies.chat_schema import ChatRequest
from manytune.server.bodies.schema import CompletionRequest, EmbeddingRequest

CLIENTS_OWN = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}
ROUTES = [
    (ChatCompletions, ChatRequest, "/v1/chat/completions"),
    (Completions, CompletionRequest, "/v1/completions"),
    (Embeddings, EmbeddingRequest, "/v1/embeddings"),
]


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


@pytest.mark.parametrize(("resource", "body", "path"), ROUTES)
def test_every_parameter_of_the_official_client_is_a_field_or_refused_by_name(resource, body, path):
    parameters = set(inspect.signature(resource.create).parameters) - CLIENTS_OWN
    assert parameters <= set(body.model_fields) | set(body.refused)


@pytest.mark.parametrize(
    ("body", "documented"), [(ChatRequest, DOCUMENTED_CHAT), (CompletionRequest, DOCUMENTED_COMPLETIONS)]
)
def test_every_documented_field_is_honoured_or_refused_by_name(body, documented):
    assert set(documented.split()) <= set(body.model_fields) | set(body.refused)


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        (path, body, name)
        for path, fields, body in (
            ("/v1/chat/completions", ChatRequest, {"messages": [{"role": "user", "content": "a"}]}),
            ("/v1/completions", CompletionRequest, {"prompt": "a"}),
        )
        for name in fields.refused
    ],
)
def test_what_is_not_implemented_is_refused_unless_it_is_null(client, path, body, name):
    asked = {"model": "base", "max_tokens": 1, **body}
    refused = client.post(path, json={**asked, name: {"something": 1}}).json()["error"]
    assert (refused["code"], refused["param"]) == ("unsupported_parameter", name)
    assert client.post(path, json={**asked, name: None}).status_code == 200


def test_an_answer_continues_after_an_end_token_with_ignore_eos(client):
    asked = {"model": "base", "prompt": "a", "max_tokens": 12, "temperature": 0, "logit_bias": {"0": 100}}
    ended = client.post("/v1/completions", json=asked).json()
    assert (ended["choices"][0]["finish_reason"], ended["usage"]["completion_tokens"]) == ("stop", 1)
    went_on = client.post("/v1/completions", json={**asked, "ignore_eos": True}).json()
    assert (went_on["choices"][0]["finish_reason"], went_on["usage"]["completion_tokens"]) == ("length", 12)
