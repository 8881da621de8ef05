"""What of a request decides its replica: the adapter that answers, or for the plain base the prompt's beginning.

Bodies are read here as far as that takes, and not checked: the replica that gets a request refuses what is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

#: How many characters of a prompt decide the replica: requests that share them can share a cached prefix.
PREFIX_CHARS = 256

_CHAT, _COMPLETIONS, _COMPARE = "/v1/chat/completions", "/v1/completions", "/v1/compare"
_PROMPTS = {
    _CHAT: ("messages", "fields"),
    _COMPLETIONS: ("prompt",),
    _COMPARE: ("messages", "fields"),
    "/v1/embeddings": ("input",),
    "/v1/classify": ("input", "words", "fields"),
}


@dataclass(frozen=True)
class Asked:
    """What a request asks for.

    Attributes:
        models: Who is to answer.
        answers: How many answers, each of which counts towards the limits of a key.
        count_field: The field that asks for more than one.
        prefix: The first characters of the prompt.
    """

    models: tuple[str, ...]
    answers: int
    count_field: str
    prefix: str

    def key(self, base_name: str, digest_of: Callable[[str], str | None]) -> str:
        """What the request's replica follows from.

        Args:
            base_name: The plain base's name.
            digest_of: The digest of the adapter that has a name now; None if none has it.
        """
        adapter = next((name for name in self.models if name != base_name), None)
        if adapter is None:
            return f"prefix {self.prefix}"
        return f"adapter {digest_of(adapter) or adapter}"


def read_body(path: str, body: bytes) -> Asked | None:
    """What a request asks for; None if it is no request to a model, or its body can't be read."""
    if path not in _PROMPTS:
        return None
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict):
        return None
    models = fields.get("models") if path == _COMPARE else [fields.get("model")]
    if not isinstance(models, list) or not models or not all(isinstance(one, str) for one in models):
        return None
    answers, count_field = _answers(path, fields, len(models))
    prompt = next((fields[name] for name in _PROMPTS[path] if fields.get(name)), None)
    return Asked(tuple(models), answers, count_field, _beginning(prompt))


def _answers(path: str, fields: dict[str, Any], models: int) -> tuple[int, str]:
    """As the routes count them: as many as are asked for, of each prompt or of each model."""
    if path == _COMPARE:
        return models, "models"
    if path not in (_CHAT, _COMPLETIONS):
        return 1, "n"
    wanted = fields.get("n")
    n = wanted if type(wanted) is int and wanted > 0 else 1
    prompt = fields.get("prompt")
    prompts = 1
    if path == _COMPLETIONS and isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        prompts = len(prompt)
    return n * prompts, "n" if n > 1 or path == _CHAT else "prompt"


def _beginning(prompt: Any) -> str:
    found = ""
    for text in _texts(prompt):
        found += f"{text[: PREFIX_CHARS - len(found)]}\n"
        if len(found) >= PREFIX_CHARS:
            break
    return found[:PREFIX_CHARS]


def _texts(value: Any) -> Iterator[str]:
    """The texts and tokens in a value, in order, however deep they are."""
    rest = [value]
    while rest:
        one = rest.pop()
        if isinstance(one, dict):
            rest.extend(reversed(one.values()))
        elif isinstance(one, list):
            rest.extend(reversed(one))
        elif isinstance(one, str):
            yield one
        elif one is not None:
            yield str(one)
