"""A body of a mebibyte with a mistake in every item is answered by the first, as fast as one with a single mistake."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from tests.server.api_client import ROOT, Client
from tests.server.live import live
from tests.server.world import app_of, fill_store

from manytune.server.access.auth import Keys
from manytune.server.bodies.body import Body
from manytune.server.bodies.chat_schema import ChatRequest, CompareRequest
from manytune.server.bodies.schema import CompletionRequest, EmbeddingRequest
from manytune.store.base import Base

MANY = 5_000
ASKED = [{"role": "user", "content": "a"}]
OPTIONS = {f"x{number}": 1 for number in range(MANY)}


def said(**fields: Any) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": "a", **fields}]


BODIES: list[tuple[type[Body], dict[str, Any]]] = [
    *((CompletionRequest, {"prompt": prompt}) for prompt in (
        [None] * MANY,
        [1, *["a"] * MANY],
        ["a", *[1] * MANY],
        ["a", *[None] * MANY],
        [[1], *[1] * MANY],
        [[1], *[["a"] * MANY] * 3],
        [[1, *["a"] * MANY]],
        [{}] * MANY,
        [True] * MANY,
        [1.5] * MANY,
    )),
    *((EmbeddingRequest, {"input": texts}) for texts in ([None] * MANY, ["a", *[None] * MANY], [1, *["a"] * MANY])),
    (CompletionRequest, {"prompt": "a", "stop": [1] * MANY}),
    (CompletionRequest, {"prompt": "a", "stop_token_ids": [-1] * MANY}),
    (CompletionRequest, {"prompt": "a", "logit_bias": dict.fromkeys(OPTIONS, "a")}),
    (CompletionRequest, {"prompt": "a", **OPTIONS}),
    (CompletionRequest, {"prompt": "a", "stream": True, "stream_options": OPTIONS}),
    (ChatRequest, {"messages": [{}] * MANY}),
    (ChatRequest, {"messages": [1] * MANY}),
    (ChatRequest, {"messages": [{**ASKED[0], **OPTIONS}]}),
    *((ChatRequest, {"messages": [{"role": "user", "content": [part] * MANY}]}) for part in (
        {}, 1, None, "a", {"type": "text"}, {"type": "image_url"}, {"type": "text", "text": 1}
    )),
    (ChatRequest, {"messages": said(tool_calls=[{}] * MANY)}),
    (ChatRequest, {"messages": ASKED, "tools": [{}] * MANY}),
    (ChatRequest, {"messages": ASKED, "tools": [{"type": "function", "function": OPTIONS}]}),
    (ChatRequest, {"messages": ASKED, "chat_template_kwargs": OPTIONS}),
    (ChatRequest, {"messages": ASKED, "response_format": OPTIONS}),
    (CompareRequest, {"messages": ASKED, "models": [1] * MANY}),
    (CompareRequest, {"messages": ASKED, "models": ["a", *[None] * MANY]}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "fields"), BODIES, ids=[f"{n}-{kind.__name__}" for n, (kind, _) in enumerate(BODIES)]
)
def test_the_first_mistakes_end_the_validation(kind: type[Body], fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as error:
        kind.model_validate({"model": "a", **fields} if kind is not CompareRequest else fields)
    assert error.value.error_count() <= 3


def test_they_are_answered_by_name(base: Base, tmp_path: Any) -> None:
    paths = {
        ChatRequest: "chat/completions",
        CompareRequest: "compare",
        CompletionRequest: "completions",
        EmbeddingRequest: "embeddings",
    }
    models = {"messages": ASKED, "models": ["base"] * MANY}
    with (
        live(app_of(base, fill_store(tmp_path, base), Keys([ROOT]))) as server,
        Client(server.port) as client,
    ):
        for kind, fields in [*BODIES, (CompareRequest, models)]:
            body = {"model": "base", **fields} if kind is not CompareRequest else fields
            status, answer = client.call("POST", f"/v1/{paths[kind]}", body)
            assert status == 400 and len(answer["error"]["message"]) < 400, (fields, answer)
            assert answer["error"]["type"] == "invalid_request_error" and answer["error"]["param"], answer
