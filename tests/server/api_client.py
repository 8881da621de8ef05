"""A plain HTTP client with an admin key."""

from __future__ import annotations

import http.client
import json
from contextlib import AbstractContextManager
from typing import Any

from manytune.server.access.auth import Key

ROOT = Key(name="root", sha256="4813494d137e1631bba301d5acab6e7bb7aa74ce1185d456565ef51d737677b2", admin=True)
ROOT_HEADERS = {"authorization": "Bearer root"}


class Client(AbstractContextManager["Client"]):
    """One connection that is used again after an error."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and content, decoded if it is a JSON object."""
        headers = {"content-type": "application/json", **ROOT_HEADERS}
        content = None if body is None else json.dumps(body)
        try:
            self._connection.request(method, path, content, headers)
            response = self._connection.getresponse()
        except (
            ConnectionError
        ):  # the server has closed a connection that was idle; a dead server takes no other
            self._connection.close()
            self._connection.request(method, path, content, headers)
            response = self._connection.getresponse()
        content = response.read()
        return response.status, json.loads(content) if content[:1] == b"{" else content

    def ask(self, model: str) -> tuple[int, Any]:
        """Status, and choices or error, of a short chat completion."""
        body = {
            "model": model,
            "messages": [{"role": "user", "content": "abc"}],
            "max_tokens": 4,
            "temperature": 0,
        }
        status, answer = self.call("POST", "/v1/chat/completions", body)
        return status, answer["choices"] if status == 200 else answer["error"]
