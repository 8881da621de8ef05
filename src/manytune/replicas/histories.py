"""The last hour and the audit of a server of many replicas, made of those of all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

_MOST_ACTIONS = 500

#: What isn't a sum over the replicas: quantiles of parts don't add up, so the slowest replica's are shown.
_LARGEST = ("first_token_p50", "first_token_p95")
_TABLES = ("models", "keys")


def merge_histories(histories: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One history of several whose samples are at the same times.

    Counts, queues and memory are sums; of the times to the first token the slowest replica's are shown.

    Args:
        histories: Each replica's answer to `GET /v1/history`.
    """
    samples: dict[float, dict[str, Any]] = {}
    for history in histories:
        for sample in history["data"]:
            known = samples.setdefault(sample["time"], {})
            for name, value in sample.items():
                known[name] = _joined(name, known.get(name), value)
    budgets = {
        name: sum(history[name] for history in histories)
        for name in ("kv_budget_tokens", "adapter_budget_bytes")
    }
    return {**histories[0], **budgets, "data": [samples[time] for time in sorted(samples)]}


def merge_audits(audits: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The actions of admins, each of which several replicas may have kept, the newest first.

    Args:
        audits: Each replica's answer to `GET /v1/audit`.
    """
    actions: dict[str, Any] = {}
    for audit in audits:
        for action in audit["data"]:
            known = actions.setdefault(action["request_id"], action)
            if action["status"] > known["status"] or (action["detail"] and not known["detail"]):
                actions[action["request_id"]] = action
    newest = sorted(actions.values(), key=lambda action: str(action["time"]), reverse=True)
    return {**audits[0], "data": newest[:_MOST_ACTIONS]}


def _joined(name: str, one: Any, other: Any) -> Any:
    if one is None or other is None:
        return other if one is None else one
    if name == "time":
        return one
    if name in _TABLES:
        return _joined_tables(one, other)
    add: Callable[[Any, Any], Any] = max if name in _LARGEST else _sum
    return add(one, other)


def _joined_tables(one: dict[str, list[float]], other: dict[str, list[float]]) -> dict[str, list[float]]:
    joined = dict(one)
    for name, row in other.items():
        joined[name] = [a + b for a, b in zip(joined[name], row, strict=True)] if name in joined else row
    return joined


def _sum(one: float, other: float) -> float:
    return one + other
