"""Names with a namespace, as adapters have that come from a hub: found, listed and forgotten, and never outside."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.store.adapters_made import make_adapter

from manytune.errors import NameTakenError, StoreError, UnknownAdapterError
from manytune.store.base import Base
from manytune.store.folder import FolderStore
from manytune.store.store import AdapterStore

OUTSIDE = [
    *("../up", "a/..", "../..", "a/../../b", "a/b/c", "/a", "/etc/passwd", "a/", "a//b", "./a", "a/.hidden"),
    *("a\\b", "a/b\n", "~/a", "a/%2e%2e", "a%2Fb", "C:/a", "a/-b", f"a/{'x' * 101}", f"{'x' * 101}/a"),
]


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path / "store")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_base: Base) -> list[Path]:
    root = tmp_path_factory.mktemp("made")
    return [make_adapter(root / f"adapter{seed}", tiny_base, seed=seed) for seed in range(3)]


def test_a_name_in_a_namespace_is_added_found_listed_moved_and_forgotten(
    store: AdapterStore, made: list[Path]
) -> None:
    added = store.add(made[0], name="user/adapter", tags=["hub"])
    assert added.names == ("user/adapter",) and str(added) == "user/adapter"
    assert store.resolve("user/adapter") == added.digest and "user/adapter" in store
    store.alias("user/adapter", "other.user/adapter-v2")
    assert store.names() == {"other.user/adapter-v2": added.digest, "user/adapter": added.digest}
    assert store.entries(tag="hub")[0].names == ("other.user/adapter-v2", "user/adapter")
    with pytest.raises(NameTakenError, match="'user/adapter' belongs to adapter"):
        store.add(made[1], name="user/adapter")
    moved = store.add(made[1], name="user/adapter", move=True)
    assert store.resolve("user/adapter") == moved.digest
    store.unalias("user/adapter")
    with pytest.raises(
        UnknownAdapterError, match=r"no adapter 'user/adaptr'\. Did you mean 'other.user/adapter-v2'"
    ):
        store.resolve("user/adaptr")
    store.remove("other.user/adapter-v2")
    assert store.names() == {}


def test_a_namespace_and_a_name_of_the_same_word_do_not_collide(
    store: AdapterStore, made: list[Path]
) -> None:
    digests = [store.add(one, name=name).digest for one, name in zip(made, ("a", "a/b", "a-b"), strict=True)]
    assert [store.resolve(name) for name in ("a", "a/b", "a-b")] == digests
    store.unalias("a")
    assert list(store.names()) == ["a-b", "a/b"]
    store.add(made[0], name="a")
    store.unalias("a/b")
    assert list(store.names()) == ["a", "a-b"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_could_lead_anywhere_else_is_refused_everywhere(
    name: str, store: AdapterStore, made: list[Path], tmp_path: Path
) -> None:
    kept = store.add(made[0], name="kept")
    (store.root / "up").write_text(kept.digest)
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    for write in (
        lambda: store.add(made[0], name=name),
        lambda: store.alias("kept", name),
        lambda: store.tag("kept", name),
    ):
        with pytest.raises(StoreError, match=r"can't be a (name|tag)"):
            write()
    for read in (store.resolve, store.entry, store.path, store.remove, store.unalias):
        with pytest.raises(UnknownAdapterError):
            read(name)
    assert name not in store
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before


def test_a_tag_has_no_namespace(store: AdapterStore, made: list[Path]) -> None:
    with pytest.raises(StoreError, match="'a/b' can't be a tag"):
        store.add(made[0], name="one", tags=["a/b"])


def test_a_store_that_is_followed_keeps_its_namespaces(
    store: AdapterStore, made: list[Path], tiny_base: Base
) -> None:
    store.add(made[0], name="user/adapter")
    following = FolderStore(store.root, tiny_base)
    following.refresh()
    assert list(following.names()) == ["user/adapter"]
    store.unalias("user/adapter")
    following.refresh()
    assert list(following.names()) == []
