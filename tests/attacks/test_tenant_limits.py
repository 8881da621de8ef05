"""Finding 8: limits count answers, and one tenant's backlog refuses and delays nobody else."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from starlette.testclient import TestClient
from tests.server.live import live
from tests.server.world import app_of

from manytune.engine.scheduler import AGING, Job, Scheduler
from manytune.server.access.auth import Key, Keys
from manytune.server.access.tenant_quotas import TenantQuotas
from manytune.server.http_errors import HttpError

CHAT = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}


def key(name: str, **rights: Any) -> Key:
    return Key(name=name, sha256=hashlib.sha256(name.encode()).hexdigest(), **rights)


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {name}"}


@pytest.fixture(scope="module")
def guarded(base, store):
    keys = Keys([key("two", concurrent=2), key("four", requests_per_minute=4), key("free")])
    with TestClient(app_of(base, store, keys)) as client:
        yield client


ASKS = [
    ("/v1/chat/completions", {"model": "one", **CHAT, "n": 3}, "n"),
    ("/v1/completions", {"model": "one", "prompt": "a", "max_tokens": 1, "n": 3}, "n"),
    ("/v1/completions", {"model": "one", "prompt": ["a", "b", "c"], "max_tokens": 1}, "prompt"),
    ("/v1/completions", {"model": "one", "prompt": [[4], [5], [6]], "max_tokens": 1}, "prompt"),
    ("/v1/compare", {"models": ["one", "two", "base"], **CHAT}, "models"),
]


@pytest.mark.parametrize(("path", "body", "field"), ASKS)
def test_whatever_asks_for_several_answers_counts_as_so_many(
    guarded: TestClient, path: str, body: dict, field: str
) -> None:
    refused = guarded.post(path, json=body, headers=bearer("two"))
    assert refused.status_code == 400 and refused.json()["error"]["param"] == field
    assert guarded.post(path, json=body, headers=bearer("free")).status_code == 200


def test_best_of_makes_no_answers_that_nobody_counts(guarded: TestClient) -> None:
    body = {"model": "one", "prompt": "a", "max_tokens": 1, "best_of": 16}
    assert guarded.post("/v1/completions", json=body, headers=bearer("two")).status_code == 400


def test_answers_of_a_minute_are_counted_and_quotas_are_released(guarded: TestClient) -> None:
    for _ in range(3):  # of two at once: each request releases its answers
        body = {"model": "one", **CHAT, "n": 2}
        assert guarded.post("/v1/chat/completions", json=body, headers=bearer("two")).status_code == 200
    three, two = ({"model": "one", **CHAT, "n": n} for n in (3, 2))
    assert guarded.post("/v1/chat/completions", json=three, headers=bearer("four")).status_code == 200
    refused = guarded.post("/v1/chat/completions", json=two, headers=bearer("four"))
    assert refused.status_code == 429 and 0 < int(refused.headers["retry-after"]) <= 30


def test_quotas_are_each_tenants_own() -> None:
    quotas = TenantQuotas(4)
    first = quotas.reserve("a", 3)
    with pytest.raises(HttpError, match="of one tenant"):
        quotas.reserve("a", 2)
    everybody = [quotas.reserve(name, 4) for name in "bcd"]  # nobody else is refused
    first.release()
    second = quotas.reserve("a", 2)
    for reserved in (first, second, *everybody):
        reserved.release_all()
        reserved.release_all()
        reserved.release()
    assert not quotas._reserved


def test_a_tenant_that_uses_up_its_quota_leaves_no_429_to_another(base, store, slow_steps) -> None:
    keys = Keys([key("greedy"), key("other")])
    app = app_of(base, store, keys, max_queue=8, max_answer_tokens=40)
    body = {"model": "one", **CHAT, "max_tokens": 40, "logit_bias": {"0": -100}, "stream": True}
    with live(app) as server:
        for _ in range(2):
            assert server.post("/v1/chat/completions", {**body, "n": 8}, **bearer("greedy")).status == 200
        assert server.post("/v1/chat/completions", {**body, "n": 1}, **bearer("greedy")).status == 429
        answer = server.post("/v1/chat/completions", {**body, "max_tokens": 1}, **bearer("other"))
        assert answer.status == 200 and b"finish_reason" in answer.read()


def run(scheduler: Scheduler, left: dict[str, int]) -> None:
    """One step, as the engine does it."""
    scheduler.admit()
    plan = scheduler.plan()
    for name in (*plan.decode, *plan.ready):
        left[name] -= 1
        if not left[name]:
            scheduler.remove(name)


def test_an_old_backlog_is_not_before_another_tenants_request() -> None:
    """Waiting made each request of a backlog more important, so that all of it went before newcomers."""
    scheduler = Scheduler(kv_budget_tokens=4096, max_batch=1, prefill_chunk=64, max_adapters=4)
    left = {f"a{number}": 8 for number in range(60)}
    for name in left:
        scheduler.add(Job(name, 4, 12, tenant="a"))
    while scheduler.waiting > 60 - (AGING // 8) * 3:
        run(scheduler, left)
    left["b"] = 8
    scheduler.add(Job("b", 4, 12, tenant="b"))
    behind = scheduler.waiting
    while left["b"]:
        run(scheduler, left)
    assert behind - scheduler.waiting <= 2


def test_a_long_prompt_delays_no_other_tenants_prompt() -> None:
    scheduler = Scheduler(kv_budget_tokens=1 << 16, max_batch=8, prefill_chunk=64, max_adapters=4)
    scheduler.add(Job("long", 64 * 100, 64 * 101, tenant="a"))
    scheduler.admit()
    scheduler.plan()
    scheduler.add(Job("short", 64, 128, tenant="b"))
    scheduler.admit()
    # Level with the long one's tenant at first, it is read in one of two steps.
    assert [[chunk.id for chunk in scheduler.plan().chunks] for _ in range(3)] == [
        ["long"],
        ["short"],
        ["long"],
    ]
