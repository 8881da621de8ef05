"""Which versions a name has had."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.store.adapters_made import make_adapter

from manytune.errors import StoreError
from manytune.store.base import Base
from manytune.store.store import AdapterStore


def add(store: AdapterStore, folder: Path, base: Base, name: str, seed: int) -> str:
    return store.add(make_adapter(folder / f"{name}{seed}", base, seed=seed), name=name, move=True).digest


def versions(store: AdapterStore, name: str) -> list[str]:
    return [one.digest for one in store._labels.versions(name)]


def test_a_name_has_its_present_version_first_and_each_once(tiny_base: Base, tmp_path: Path) -> None:
    store = AdapterStore(tmp_path / "store")
    assert versions(store, "a") == []
    first, second = (add(store, tmp_path, tiny_base, "a", seed) for seed in (0, 1))
    assert versions(store, "a") == [second, first]
    store.alias(first, "a", move=True)
    assert versions(store, "a") == [first, second]
    assert all(one.since for one in store._labels.versions("a"))
    store.alias(first, "user/b")
    assert versions(store, "user/b") == [first]


def test_a_store_from_before_names_were_followed_shows_the_version_that_it_had(
    tiny_base: Base, tmp_path: Path
) -> None:
    store = AdapterStore(tmp_path / "store")
    first = add(store, tmp_path, tiny_base, "a", 0)
    (store.root / "former" / "a").unlink()
    assert [(one.digest, one.since) for one in store._labels.versions("a")] == [(first, None)]
    second = add(store, tmp_path, tiny_base, "a", 1)
    assert versions(store, "a") == [second, first]


def test_the_last_twenty_are_kept_and_a_damaged_line_is_skipped(tiny_base: Base, tmp_path: Path) -> None:
    store = AdapterStore(tmp_path / "store")
    digest = add(store, tmp_path, tiny_base, "a", 0)
    file = store.root / "former" / "a"
    file.write_text("".join(f"{number:064x} 2026-01-31T12:00:00Z\n" for number in range(30)) + "nonsense\n")
    with store._lock():
        store._labels.put_name("a", f"{99:064x}")
    found = versions(store, "a")
    assert found[:2] == [f"{99:064x}", digest] and len(file.read_text().splitlines()) == 20


def test_a_name_that_is_taken_away_has_no_history_any_more(tiny_base: Base, tmp_path: Path) -> None:
    store = AdapterStore(tmp_path / "store")
    add(store, tmp_path, tiny_base, "a", 0)
    add(store, tmp_path, tiny_base, "a", 1)
    store.unalias("a")
    assert versions(store, "a") == [] and not (store.root / "former" / "a").exists()


def test_a_history_that_cannot_be_read_is_an_error_and_stays_as_it_is(
    tiny_base: Base, tmp_path: Path
) -> None:
    store = AdapterStore(tmp_path / "store")
    add(store, tmp_path, tiny_base, "a", 0)
    file = store.root / "former" / "a"
    file.unlink()
    file.mkdir()
    with pytest.raises(
        StoreError, match=r"former/a: the name's former versions can't be read \(Is a directory\)"
    ):
        add(store, tmp_path, tiny_base, "a", 1)
    assert file.is_dir()
