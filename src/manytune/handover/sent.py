"""What clients send, as vLLM gets it: the version's name for the model's, its prompts' options, manytune's limits."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any

from manytune.errors import DataError
from manytune.handover.versions import Version
from manytune.server.bodies.body import invalid, is_deep
from manytune.server.http_errors import HttpError
from manytune.server.prompts import template_of

#: Decided by manytune, and where a client could reach what isn't its own.
_NOT_OF_CLIENTS = {
    "chat_template": "an adapter has the chat template that it was trained with; leave it out.",
    "lora_request": "the model's name says which adapter is meant; leave it out.",
    "kv_transfer_params": "it is for servers among themselves; leave it out.",
}
_LIMITS = ("max_tokens", "max_completion_tokens")


class Sent:
    """The body of a request.

    Args:
        content: As it came.
        answer_tokens: The longest answer.

    Attributes:
        model: The model's name.
        answers: How many answers are asked for.
        streams: Whether they are to come as they are generated.
        wants_usage: Whether a stream is to end with the counts of tokens.

    Raises:
        HttpError: 400: a field that manytune reads has the wrong kind, or isn't for clients.
    """

    def __init__(self, content: bytes, *, answer_tokens: int) -> None:
        self._body = _object(content)
        for name, why in _NOT_OF_CLIENTS.items():
            if self._body.get(name) is not None:
                raise HttpError(400, f"{name}: {why}", code="unsupported_parameter", param=name)
        self.model: str = self._read("model", str, "a text")
        choices = self._read("n", int, "a whole number above 0", 1)
        if choices < 1:
            raise invalid(f"n: expected a whole number above 0, found {choices}.", "n")
        self.answers = choices * self._prompts()
        self.streams: bool = self._read("stream", bool, "true or false", False)
        options: dict[str, Any] = self._read("stream_options", dict, "an object", {})
        self.wants_usage = bool(options.get("include_usage"))
        for name in _LIMITS:
            limit = self._read(name, int, "a whole number", 0)
            if limit > answer_tokens:
                raise invalid(f"{name} is {limit}; this server allows at most {answer_tokens}.", name)

    def for_vllm(self, version: Version, *, salt: str | None, is_chat: bool) -> dict[str, Any]:
        """The body as vLLM gets it.

        Args:
            version: What answers.
            salt: What keeps the tenant's cached prefixes apart from others'; None for nothing.
            is_chat: Whether it is a conversation.

        Raises:
            HttpError: The adapter has no prompt template for the fields.
            TemplateError: A field is missing, or isn't text.
        """
        body = dict(self._body)
        if is_chat:
            body = version.additions.added(self._with_messages(body, version))
        body["model"] = version.called
        if salt is not None:
            given = str(body.get("cache_salt") or "")
            body["cache_salt"] = hmac.new(salt.encode(), given.encode(), hashlib.sha256).hexdigest()
        if self.streams:
            body["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
        return body

    def _with_messages(self, body: dict[str, Any], version: Version) -> dict[str, Any]:
        fields, task = body.pop("fields", None), body.pop("task", None)
        if fields is None:
            if task is not None:
                raise invalid("task selects the template for fields, and there are no fields.", "task")
            return body
        if body.get("messages"):
            raise invalid("give either messages or fields.", "messages")
        if not isinstance(fields, dict) or not (task is None or isinstance(task, str)):
            raise invalid("fields: expected an object, and task a text.", "fields")
        try:
            rendered = template_of(version.manifest, task).render_prompt(fields)
        except DataError as error:
            raise HttpError(400, str(error), code="invalid_prompt", param="fields") from error
        return {**body, "messages": [{"role": one.role, "content": one.text} for one in rendered]}

    def _prompts(self) -> int:
        """How many prompts there are: /v1/completions takes lists of texts, and of lists of tokens."""
        prompt = self._body.get("prompt")
        if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
            return len(prompt)
        return 1

    def _read(self, name: str, kind: type, expected: str, default: Any = None) -> Any:
        value = self._body.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            found = "it is missing" if name not in self._body else f"found {json.dumps(value)[:100]}"
            raise invalid(f"{name}: expected {expected}, {found}.", name)
        return value


def _object(content: bytes) -> Mapping[str, Any]:
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise HttpError(400, "the body: expected a JSON object.", code="invalid_json")
    if is_deep(body):
        raise HttpError(400, "the body has objects or lists too deep in one another.", code="invalid_value")
    return body
