"""What an operator asks a server in a test."""

from __future__ import annotations

from typing import Any

from starlette.testclient import TestClient


def listed(admin: TestClient, name: str = "one") -> dict[str, Any]:
    """An adapter as `GET /v1/adapters` lists it."""
    data: list[dict[str, Any]] = admin.get("/v1/adapters").json()["data"]
    return next(one for one in data if one["id"] == name)


def ask(admin: TestClient, model: str = "one") -> Any:
    """The response to a chat completion of two tokens."""
    body = {"model": model, "messages": [{"role": "user", "content": "a"}], "max_tokens": 2, "temperature": 0}
    return admin.post("/v1/chat/completions", json={**body, "logit_bias": {"0": -100}})
