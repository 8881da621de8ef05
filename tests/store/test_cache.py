from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tests.random_cases import cases
from tests.store.adapters_made import make_adapter

from manytune.errors import BaseMismatchError, CacheFullError, StoreError, UnknownAdapterError
from manytune.store.base import Base
from manytune.store.cache import AdapterCache
from manytune.store.resident import read_resident
from manytune.store.store import AdapterStore

NAMES = ["a", "b", "c", "d"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_base: Base) -> AdapterStore:
    root = tmp_path_factory.mktemp("cache")
    store = AdapterStore(root / "store")
    for seed, name in enumerate(NAMES):
        store.add(make_adapter(root / name, tiny_base, seed=seed), name=name)
    return store


@pytest.fixture(scope="module")
def size(store: AdapterStore) -> int:
    """What one adapter takes in memory."""
    return read_resident(store.path("a")).nbytes


def resident(cache: AdapterCache) -> set[str]:
    """The names of what a cache holds, found without using it."""
    return {name for name in NAMES if cache.store.resolve(name) in cache._resident}


def test_what_is_asked_for_again_is_not_loaded_again(store: AdapterStore, size: int) -> None:
    cache = AdapterCache(store, budget=10 * size)
    first = cache.get("a")
    assert cache.get("a") is first
    assert cache.get(store.resolve("a")[:8]) is first
    counters = cache.counters()
    assert (counters.hits, counters.misses, counters.evictions) == (2, 1, 0)
    assert (counters.resident, counters.nbytes, counters.budget) == (1, size, 10 * size)
    assert counters.hit_rate == pytest.approx(2 / 3)
    assert counters.load_seconds > 0


def test_the_least_recently_used_makes_room(store: AdapterStore, size: int) -> None:
    cache = AdapterCache(store, budget=2 * size + size // 2)
    for name in ("a", "b", "a", "c"):
        cache.get(name)
    assert resident(cache) == {"a", "c"}
    counters = cache.counters()
    assert (counters.evictions, counters.resident, counters.nbytes) == (1, 2, 2 * size)


def test_what_is_pinned_stays_as_often_as_it_was_pinned(store: AdapterStore, size: int) -> None:
    cache = AdapterCache(store, budget=2 * size)
    first, _ = cache.pin("a"), cache.pin("a")
    for name in ("b", "c", "d"):
        cache.get(name)
    assert resident(cache) == {"a", "d"}
    assert not cache.evict("a")
    cache.unpin(first)
    assert not cache.evict("a")
    assert cache.counters().pinned == 1
    cache.unpin(first)
    assert cache.counters().pinned == 0
    assert cache.evict("a")
    assert not cache.evict("a")
    assert resident(cache) == {"d"}


def test_pins_that_leave_no_room_are_an_error_that_says_how_much_there_is(
    store: AdapterStore, size: int
) -> None:
    cache = AdapterCache(store, budget=2 * size)
    with cache.pinned("a"), cache.pinned("b"):
        with pytest.raises(
            CacheFullError, match=f"budget is {2 * size:,}, of which {2 * size:,} are in use by pinned"
        ):
            cache.pin("c")
        assert resident(cache) == {"a", "b"}
    cache.get("c")
    assert resident(cache) == {"b", "c"}
    with pytest.raises(StoreError, match=rf"has {size:,} bytes; the cache's budget is {size - 1:,}"):
        AdapterCache(store, budget=size - 1).get("a")


def test_an_error_leaves_nothing_pinned_or_half_loaded(store: AdapterStore, size: int) -> None:
    cache = AdapterCache(store, budget=size - 1)
    for _ in range(2):
        with pytest.raises(StoreError, match="budget"):
            cache.pin("a")
    with pytest.raises(UnknownAdapterError, match="there is no adapter 'x'"):
        cache.pin("x")
    assert (cache._pins, cache._loading, cache.counters().nbytes) == ({}, {}, 0)


def test_what_is_prefetched_is_there_and_errors_are_kept_for_who_asks(store: AdapterStore, size: int) -> None:
    cache = AdapterCache(store, budget=10 * size)
    a, b, missing = cache.prefetch(["a", "b", "missing"])
    assert a.result(10).digest == store.resolve("a")
    assert b.result(10).digest == store.resolve("b")
    with pytest.raises(UnknownAdapterError, match="there is no adapter 'missing'"):
        missing.result(10)
    assert cache.get("a") is a.result()
    counters = cache.counters()
    assert (counters.prefetched, counters.hits, counters.misses) == (2, 1, 0)
    cache.close()
    assert cache.counters().resident == 0


def test_one_that_many_ask_for_at_once_is_loaded_once(
    store: AdapterStore, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:

    loads: list[Path] = []
    begun, go_on = threading.Event(), threading.Event()

    def slowly(directory: Path, **options: object) -> object:
        loads.append(directory)
        begun.set()
        assert go_on.wait(10)
        return real(directory, **options)  # type: ignore[arg-type]

    real = read_resident
    monkeypatch.setattr("manytune.store.cache.read_resident", slowly)
    cache = AdapterCache(store, budget=10 * size)
    with ThreadPoolExecutor(6) as pool:
        first = pool.submit(cache.get, "a")
        assert begun.wait(10)
        others = [pool.submit(cache.get, "a") for _ in range(5)]
        while cache.counters().hits < 5:
            pass
        go_on.set()
        assert {id(f.result(10)) for f in others} == {id(first.result(10))}
    assert len(loads) == 1


def test_a_name_that_moves_is_followed(store: AdapterStore, size: int) -> None:
    cache = AdapterCache(store, budget=10 * size)
    store.alias("a", "current")
    assert cache.get("current") is cache.get("a")
    store.alias("b", "current", move=True)
    assert cache.get("current") is cache.get("b")


def test_an_adapter_of_another_base_is_refused(store: AdapterStore, size: int, tiny_base: Base) -> None:
    other = type(tiny_base.fingerprint)(
        tiny_base.fingerprint.config, "0" * 64, tiny_base.fingerprint.tokenizer
    )
    assert AdapterCache(store, budget=10 * size, fingerprint=tiny_base.fingerprint).get("a")
    with pytest.raises(BaseMismatchError, match=r"trained on another base; the weights differ"):
        AdapterCache(store, budget=10 * size, fingerprint=other).get("a")


def test_who_holds_an_adapter_keeps_it_whatever_becomes_of_the_cache_and_the_files(
    store: AdapterStore, size: int, tmp_path: Path, tiny_base: Base
) -> None:
    store.add(make_adapter(tmp_path / "e", tiny_base, seed=9), name="e")
    expected = load_file(tmp_path / "e" / "adapter_model.safetensors")
    cache = AdapterCache(store, budget=size)
    held = cache.get("e")
    cache.get("a")
    store.remove("e")
    assert set(held.tensors) == set(expected)
    assert all(torch.equal(held.tensors[name], expected[name]) for name in expected)


@settings(deadline=None, max_examples=cases(20), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.sampled_from(["get", "pin", "unpin", "evict"]), st.sampled_from(NAMES)), max_size=20
    )
)
def test_whatever_happens_it_does_what_the_obvious_cache_does(
    store: AdapterStore, size: int, steps: list[tuple[str, str]]
) -> None:
    """Against a list in order of use that is searched from its beginning; room for two adapters."""
    cache, recent, pins = AdapterCache(store, budget=2 * size), list[str](), dict.fromkeys(NAMES, 0)
    for what, name in steps:
        if what in ("get", "pin"):
            others = [n for n in recent if n != name and pins[n]]
            if name not in recent and len(others) == 2:
                with pytest.raises(StoreError, match="budget"):
                    getattr(cache, what)(name)
                continue
            getattr(cache, what)(name)
            if name not in recent and len(recent) == 2:
                recent.remove(next(n for n in recent if not pins[n]))
            recent = [n for n in recent if n != name] + [name]
            pins[name] += what == "pin"
        elif what == "unpin" and pins[name]:
            cache.unpin(cache.get(name))
            recent = [n for n in recent if n != name] + [name]
            pins[name] -= 1
        elif what == "evict":
            assert cache.evict(name) == (name in recent and not pins[name])
            if not pins[name]:
                recent = [n for n in recent if n != name]
        assert resident(cache) == set(recent)
        assert cache.counters().nbytes == size * len(recent) <= cache.budget
