"""Replicas of a store on shared storage: what the front knows of its names, and what each worker is told to read."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest
from tests.random_cases import DEEP
from tests.replicas.conftest import two_workers
from tests.replicas.fakes import FACTS
from tests.server.live import until
from tests.server.world import alone, plain_ids, save_base
from tests.store.adapters_made import make_adapter
from tests.store.remote.s3_server import environment, s3_server

from manytune.replicas import workers
from manytune.replicas.contract import Facts
from manytune.replicas.names import SharedNames, names_in
from manytune.replicas.workers import Workers
from manytune.server.opening import ServeOptions
from manytune.store.remote.store import SharedStore
from manytune.store.store import AdapterStore


async def soon(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not is_so():
            await asyncio.sleep(0.005)


def test_the_front_follows_names_on_shared_storage_and_keeps_them_while_it_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MANYTUNE_CACHE", str(tmp_path / "cache"))
    store = SharedStore(f"memory://bucket-{secrets.token_hex(4)}/adapters")
    base = save_base(tmp_path / "tiny")
    first, second = (
        store.add(make_adapter(tmp_path / str(seed), base, seed=seed)).digest for seed in range(2)
    )
    store.alias(first, "one")
    names = names_in(store.address)
    assert isinstance(names, SharedNames) and names.digest_of("one") is None

    def away(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no route to host")

    async def watch() -> None:
        following = asyncio.create_task(names.follow(0.001))
        await soon(lambda: names.digest_of("one") == first)
        store.alias(second, "one", move=True)
        await soon(lambda: names.digest_of("one") == second)
        names._journal._objects.pauses = ()
        with pytest.MonkeyPatch.context() as patch:
            tried: list[int] = []
            patch.setattr(names._journal._objects._files, "find", lambda *_, **__: tried.append(1) or away())
            await soon(lambda: len(tried) > 2)
            assert names.digest_of("one") == second
        store.unalias("one")
        await soon(lambda: names.digest_of("one") is None)
        following.cancel()

    asyncio.run(watch())


def test_names_in_a_directory_are_those_of_now(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path / "store")
    digest = store.add(make_adapter(tmp_path / "made", save_base(tmp_path / "tiny")), name="one").digest
    names = names_in(store.address)
    assert (names.digest_of("one"), names.digest_of("two")) == (digest, None)
    store.unalias("one")
    assert names.digest_of("one") is None


@pytest.mark.parametrize(
    ("adapters", "found", "told"),
    [
        (Path("adapters"), "/cache/folders/ab", [None, "/cache/folders/ab"]),
        ("s3://bucket/adapters", "s3://bucket/adapters", [None, None]),
    ],
)
def test_each_worker_follows_shared_storage_and_one_alone_a_directory(
    adapters: Path | str,
    found: str,
    told: list[str | None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    orders: list[Any] = []

    class Started:
        @staticmethod
        async def start(order: Any, *, threads: int) -> Any:
            orders.append(order)
            facts = Facts(**{**vars(FACTS), "store": found})
            return SimpleNamespace(facts=facts, pid=1, wait=asyncio.Event().wait, end=asyncio.Event().wait)

    monkeypatch.setattr(workers, "Worker", Started)

    async def start() -> Facts:
        return await Workers(
            ServeOptions(base="base", adapters=adapters), None, count=2, threads=1, folder=tmp_path
        ).start()

    assert asyncio.run(start()).store == found
    assert [order.store for order in orders] == told


if DEEP:

    def test_two_workers_of_a_store_on_s3_answer_as_one_server_follow_it_and_come_back(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        base = save_base(tmp_path / "tiny")
        local = AdapterStore(tmp_path / "local")
        made = [make_adapter(tmp_path / str(seed), base, seed=seed) for seed in range(3)]
        for name, adapter in zip("abc", made, strict=True):
            local.add(adapter, name=name)
        ids = plain_ids(base, "abc")
        expected = {
            name: alone(base, local, name, ids, max_new_tokens=8, ignore_eos=True).text for name in "abc"
        }

        def ask(name: str) -> Any:
            body = {"model": name, "prompt": "abc", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
            with served.client() as client:
                status, answer = client.call("POST", "/v1/completions", body)
            return answer["choices"][0]["text"] if status == 200 else status

        with s3_server() as address:
            for name, value in environment(address).items():
                monkeypatch.setenv(name, value)
            fsspec.filesystem("s3", skip_instance_cache=True).mkdir("bucket")
            store = SharedStore("s3://bucket/adapters")
            store.add(made[0], name="a")
            store.add(made[1], name="b")
            monkeypatch.setenv("MANYTUNE_CACHE", str(tmp_path / "cache of the server"))
            with two_workers(tmp_path, base, store, "--watch-seconds", "0.2") as served:
                assert [ask(name) for name in "ab"] == [expected[name] for name in "ab"]
                store.add(made[2], name="a", move=True)
                store.alias("b", "again")
                until(lambda: ask("a") == expected["c"] and ask("again") == expected["b"], seconds=60)
                before = served.pids()
                os.kill(before["0"], signal.SIGKILL)
                assert ask("b") == expected["b"]
                until(lambda: served.pids()["0"] != before["0"], seconds=120)
                assert [ask(name) for name in ("a", "again")] == [expected["c"], expected["b"]]
