"""What a client asks a small server while it is attacked."""

from __future__ import annotations

from typing import Any

from starlette.testclient import TestClient


def ask_of(server: TestClient, model: str, *, max_tokens: int = 6) -> tuple[int, Any]:
    """Status, and the choices or the error, of a chat completion that is the same each time."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "abc"}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
    }
    response = server.post("/v1/chat/completions", json=body)
    content = response.json()
    return response.status_code, content["choices"] if response.status_code == 200 else content
