"""Samples of the last hour: what was asked in each interval, of which model and by which key, and the state then."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from manytune.server.history import SAMPLES, History
from manytune.server.traffic import OTHERS, Traffic

ENGINE = SimpleNamespace(running=3, waiting=2, kv_tokens=70, kv_budget_tokens=100, prefix_tokens=9)
CACHE = SimpleNamespace(resident=4, nbytes=40)


@pytest.fixture
def traffic() -> Traffic:
    return Traffic()


@pytest.fixture
def history(traffic: Traffic) -> History:
    cache = SimpleNamespace(counters=lambda: CACHE, budget=50)
    return History(traffic, SimpleNamespace(counters=ENGINE), cache, seconds=10.0)  # type: ignore[arg-type]


def ask(traffic: Traffic, model: str, key: str, *, wait: float = 0.5, tokens: int = 2) -> None:
    for place in range(tokens):
        traffic.token(model, key, None if place else wait)
    traffic.read(model, key, 7)
    traffic.ended(model, key)


def test_an_interval_has_what_was_asked_in_it_by_model_and_by_key(traffic: Traffic, history: History) -> None:
    ask(traffic, "one", "desk", wait=0.5, tokens=3)
    ask(traffic, "one", "root", wait=1.5)
    ask(traffic, "two", "desk", wait=0.25)
    history.sample(1003.0)
    history.sample(1012.0)
    first, second = history.since(0)["data"]
    assert (first["time"], second["time"]) == (1000, 1010)  # whole multiples of the interval
    assert (first["requests"], first["prompt_tokens"], first["completion_tokens"]) == (3, 21, 7)
    assert first["models"] == {"one": [2, 14, 5, 2, 2.0], "two": [1, 7, 2, 1, 0.25]}
    assert first["keys"] == {"desk": [2, 14, 5, 2, 0.75], "root": [1, 7, 2, 1, 1.5]}
    assert (first["running"], first["waiting"], first["kv_tokens"], first["adapter_bytes"]) == (3, 2, 70, 40)
    assert first["memory_bytes"] > 1 << 20
    assert second["requests"] == 0 and second["models"] == {} and second["first_token_p50"] is None


def test_quantiles_of_the_time_to_the_first_token_are_those_of_the_interval(
    traffic: Traffic, history: History
) -> None:
    for hundredths in range(100, 0, -1):
        ask(traffic, "one", "desk", wait=hundredths / 100)
    history.sample(10.0)
    (sample,) = history.since(0)["data"]
    assert (sample["first_token_p50"], sample["first_token_p95"]) == (0.5, 0.95)


def test_an_hour_is_kept_and_of_an_interval_a_bounded_number_of_names(
    traffic: Traffic, history: History
) -> None:
    for number in range(100):
        ask(traffic, f"m{number}", "desk")
    for place in range(SAMPLES + 5):
        history.sample(10.0 * place)
    found = history.since(0)["data"]
    assert len(found) == SAMPLES and found[0]["time"] == 50
    assert [one["time"] for one in history.since(3600)["data"]] == [3610, 3620, 3630, 3640]
    history.sample(1.0)
    for number in range(100):
        ask(traffic, f"m{number}", "desk")
    history.sample(5000.0)
    models = history.since(4000)["data"][0]["models"]
    assert len(models) == 65 and models[OTHERS][0] == 36 and sum(row[0] for row in models.values()) == 100
