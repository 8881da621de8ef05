"""What the front knows of the names in a store."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.server.world import save_base
from tests.store.adapters_made import make_adapter

from manytune.replicas.names import SharedNames, names_in
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
