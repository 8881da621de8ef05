"""No parameter of the official client is unknown here: each is a field, or is refused by its own name."""

import inspect

import pytest
from openai.resources import Completions, Embeddings
from openai.resources.chat import Completions as ChatCompletions

from manytune.server.schema import ChatRequest, CompletionRequest, EmbeddingRequest

CLIENTS_OWN = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}
ROUTES = [
    (ChatCompletions, ChatRequest, "/v1/chat/completions"),
    (Completions, CompletionRequest, "/v1/completions"),
    (Embeddings, EmbeddingRequest, "/v1/embeddings"),
]


@pytest.mark.parametrize(("resource", "body", "path"), ROUTES)
def test_every_parameter_of_the_official_client_is_a_field_or_refused_by_name(resource, body, path):
    parameters = set(inspect.signature(resource.create).parameters) - CLIENTS_OWN
    assert parameters <= set(body.model_fields) | set(body.refused)


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
def test_what_is_not_implemented_is_refused_unless_it_asks_for_nothing(client, path, body, name):
    asked = {"model": "base", "max_tokens": 1, **body}
    refused = client.post(path, json={**asked, name: {"something": 1}}).json()["error"]
    assert (refused["code"], refused["param"]) == ("unsupported_parameter", name)
    assert client.post(path, json={**asked, name: None}).status_code == 200


def test_an_answer_goes_on_after_its_end_if_that_is_asked_for(client):
    asked = {"model": "base", "prompt": "a", "max_tokens": 12, "temperature": 0, "logit_bias": {"0": 100}}
    ended = client.post("/v1/completions", json=asked).json()
    assert (ended["choices"][0]["finish_reason"], ended["usage"]["completion_tokens"]) == ("stop", 1)
    went_on = client.post("/v1/completions", json={**asked, "ignore_eos": True}).json()
    assert (went_on["choices"][0]["finish_reason"], went_on["usage"]["completion_tokens"]) == ("length", 12)
