"""Whatever is sent to any route, the answer is an answer or a refusal, and nobody else notices.

MANYTUNE_CASES=20000 pytest -s tests/attacks/test_bodies.py
"""

from __future__ import annotations

import ctypes
import gc
import http.client
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.attacks.mutation import THOROUGH, cases, mutated
from tests.attacks.watchdog import Watchdog
from tests.server.api_client import ROOT, ROOT_HEADERS
from tests.server.live import live
from tests.server.world import app_of, fill_store, save_base

from manytune.server.access.auth import Keys

MESSAGES = [
    {"role": "system", "content": "ab"},
    {"role": "user", "content": [{"type": "text", "text": "abc"}]},
]
TOOL = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
}
SCHEMA = {
    "type": "json_schema",
    "json_schema": {"name": "a", "schema": {"type": "object", "properties": {"b": {"type": "string"}}}},
}
#: Characters; the server takes a MiB.
MOST = 4 << 20
#: Bodies after which the caches are full (of grammars, templates, encoders): from then on memory stays.
WARM = 10_000
BODIES: list[tuple[str, dict[str, Any]]] = [
    (
        "/v1/chat/completions",
        {"model": "one", "messages": MESSAGES, "max_tokens": 3, "temperature": 0.5, "seed": 1, "n": 2},
    ),
    (
        "/v1/chat/completions",
        {"model": "base", "messages": MESSAGES, "max_tokens": 3, "tools": [TOOL], "tool_choice": "auto"},
    ),
    (
        "/v1/chat/completions",
        {
            "model": "two",
            "messages": MESSAGES,
            "max_tokens": 3,
            "stream": True,
            "logprobs": True,
            "top_logprobs": 2,
        },
    ),
    (
        "/v1/chat/completions",
        {"model": "base", "messages": MESSAGES, "max_tokens": 3, "response_format": SCHEMA},
    ),
    (
        "/v1/completions",
        {
            "model": "one",
            "prompt": ["ab", "abc"],
            "max_tokens": 3,
            "stop": ["a"],
            "logit_bias": {"5": 2},
            "echo": True,
        },
    ),
    (
        "/v1/completions",
        {"model": "two", "prompt": [3, 4, 5], "max_tokens": 3, "logprobs": 1, "stop_token_ids": [4]},
    ),
    (
        "/v1/completions",
        {"model": "base", "prompt": "abc", "max_tokens": 3, "regex": "[a-c]+", "top_p": 0.9, "top_k": 3},
    ),
    ("/v1/compare", {"models": ["base", "one", "two"], "messages": MESSAGES, "max_tokens": 3}),
    ("/v1/embeddings", {"model": "one", "input": ["ab", "abc"]}),
    ("/v1/classify", {"model": "one", "input": ["ab", "abc"]}),
    ("/v1/adapters/one/verify", {}),
    ("/v1/adapters/reload", {}),
]


def written(tree: Any, *, ensure_ascii: bool) -> str:
    """A tree as JSON, or its beginning, which is too large for the server.

    Written in steps: `json.dumps` of some hundred MB keeps the server, which is in this process, from answering.
    """
    parts, size = [], 0
    for part in json.JSONEncoder(ensure_ascii=ensure_ascii).iterencode(tree):
        parts.append(part)
        size += len(part)
        if size > MOST:
            break
    return "".join(parts)


def content_of(draw: random.Random, body: dict[str, Any]) -> bytes:
    """A body as bytes: mostly JSON, sometimes JSON that somebody has cut or doubled."""
    text = written(mutated(draw, body), ensure_ascii=draw.random() < 0.7)
    shape = draw.randrange(20)
    if shape == 0:
        text = text[: draw.randrange(len(text) + 1)]
    elif shape == 1:
        text = text[:-1] + "," + text[1:] if text.startswith("{") else text * 2
    elif shape == 2:
        text = text.replace('"', draw.choice(["'", '"\\u0000', '\\"']), draw.choice([1, 3]))
    elif shape == 3:
        text = "[" * draw.choice([10, 1000, 100_000]) + text
    return text.encode("utf-8", "surrogatepass")


def send(connection: http.client.HTTPConnection, path: str, content: bytes) -> tuple[int, bytes]:
    """Status and content of a POST."""
    headers = {"content-type": "application/json", **ROOT_HEADERS}
    connection.request("POST", path, content, headers)
    response = connection.getresponse()
    return response.status, response.read()


def resident() -> int:
    """Bytes of this process in memory, after everything that can be given back was."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS"))


@pytest.mark.timeout(7200)
def test_any_body_is_answered_or_refused_while_others_are_served(tmp_path: Path) -> None:
    base = save_base(tmp_path / "tiny")
    app = app_of(base, fill_store(tmp_path, base), Keys([ROOT]))
    seen: Counter[int] = Counter()
    total, warm = 0, 0
    with live(app) as server, Watchdog(server.port, ("base", "one")) as others:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        for case, draw in cases(120):
            path, body = draw.choice(BODIES)
            content = content_of(draw, body)
            try:
                status, answer = send(connection, path, content)
            except (ConnectionError, http.client.HTTPException):  # it was closed after the last refusal
                connection.close()
                status, answer = send(connection, path, content)
            label = f"case {case}: {path} {content[:300]!r}: {status} {answer[:300]!r}"
            assert status < 500, label
            if status >= 400:
                error = json.loads(answer)["error"]
                assert error["message"] and error["code"] and len(answer) < 20_000, label
            seen[status] += 1
            total += 1
            if total == WARM:
                warm = resident()
        connection.close()
    assert seen[200] and seen[400]
    print(f"\n{total} bodies: {dict(sorted(seen.items()))}; {others.summary()}")
    if THOROUGH and warm:
        after = resident()
        print(f"memory after {WARM:,} bodies {warm >> 20} MiB, after all {after >> 20} MiB")
        assert after <= warm * 1.05
