"""What operators ask a server of many replicas: each request goes to all of them, and one answer is made of theirs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from manytune.replicas.contract import Forwarded, Replicas, WholeAnswer
from manytune.replicas.histories import merge_audits, merge_histories

_ADAPTERS = "/v1/adapters"
_HISTORY, _AUDIT = "/v1/history", "/v1/audit"
_OPERATION = re.compile(r"/v1/adapters/(?P<name>.+)/(?P<verb>load|unload|pin|unpin|verify)")


def is_for_all(method: str, path: str) -> bool:
    """Whether a request is for all replicas: the list of adapters, what is done with one, and what they keep.

    `load` is like a request for the adapter: it goes to the replica that these go to.
    """
    if path in (_ADAPTERS, _HISTORY, _AUDIT):
        return method == "GET"
    found = _OPERATION.fullmatch(path)
    is_load = found is not None and found["verb"] == "load"
    return method == "POST" and path.startswith(f"{_ADAPTERS}/") and not is_load


def loaded_adapter(method: str, path: str) -> str | None:
    """The adapter that a request loads; None if it loads none."""
    found = _OPERATION.fullmatch(path) if method == "POST" else None
    return found["name"] if found is not None and found["verb"] == "load" else None


async def ask_all(replicas: Replicas, request: Forwarded, path: str) -> WholeAnswer:
    """The answer to an operator, made of those of all replicas.

    Args:
        replicas: All of them.
        request: The operator's request.
        path: Its path.

    Returns:
        An error if any replica gave one.

    Raises:
        HttpError: No replica takes requests.
    """
    answers = await replicas.ask_all(request)
    refusal = next((one for one in answers if one.status >= 400), None)
    if refusal is not None:
        return refusal
    found = _OPERATION.fullmatch(path)
    if found is not None and found["verb"] in ("pin", "unpin"):
        replicas.repeat_for_later(found["name"], request if found["verb"] == "pin" else None)
    return _merged(answers, path)


def _merged(answers: Sequence[WholeAnswer], path: str) -> WholeAnswer:
    first = answers[0]
    try:
        bodies = [json.loads(one.body) for one in answers]
    except ValueError:
        return first
    if not all(isinstance(one, dict) for one in bodies):
        return first
    if path == _ADAPTERS:
        listings = [(one.replica, body["data"]) for one, body in zip(answers, bodies, strict=True)]
        merged = {**bodies[0], "data": merge_listings(listings)}
    elif path == _HISTORY:
        merged = merge_histories(bodies)
    elif path == _AUDIT:
        merged = merge_audits(bodies)
    elif path == f"{_ADAPTERS}/reload":
        merged = {"changed": _union([one["changed"] for one in bodies])}
    else:
        merged = {key: _any_of(key, bodies) for key in bodies[0]}
    body = json.dumps(merged, ensure_ascii=False, separators=(",", ":")).encode()
    headers = tuple((name, value) for name, value in first.headers if name.lower() != b"content-length")
    headers = (*headers, (b"content-length", str(len(body)).encode()))
    return WholeAnswer(first.replica, first.status, headers, body)


def merge_listings(listings: Sequence[tuple[str, Sequence[dict[str, Any]]]]) -> list[dict[str, Any]]:
    """The adapters with their states in all replicas: numbers of requests and errors are sums.

    An adapter is in memory or pinned if it is so in any replica; which are those that have it in memory is `replicas`.

    Args:
        listings: Each replica with its rows of `GET /v1/adapters`.
    """
    merged: dict[str, dict[str, Any]] = {}
    for replica, rows in listings:
        for row in rows:
            known = merged.setdefault(row["id"], {**row, "requests": 0, "errors": 0, "replicas": []})
            for key, add in _OF_ROWS.items():
                known[key] = add(known.get(key), row.get(key))
            if row["resident"]:
                known["replicas"].append(replica)
    return [merged[name] for name in sorted(merged)]


def _sum(one: Any, other: Any) -> Any:
    return (one or 0) + (other or 0)


def _either(one: Any, other: Any) -> Any:
    return one or other


_OF_ROWS: dict[str, Callable[[Any, Any], Any]] = {
    "requests": _sum,
    "errors": _sum,
    "resident": _either,
    "pinned": _either,
    "unservable": _either,
    "last_error": _either,
}


def _union(changes: Sequence[dict[str, list[str]]]) -> dict[str, list[str]]:
    """Which names were added, updated and removed: replicas look at different times, and one sees a change first."""
    return {kind: sorted({name for one in changes for name in one.get(kind, ())}) for kind in changes[0]}


def _any_of(key: str, bodies: Sequence[dict[str, Any]]) -> Any:
    values = [one.get(key) for one in bodies]
    return any(values) if all(isinstance(value, bool) for value in values) else values[0]
