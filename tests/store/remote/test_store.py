from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from manytune.errors import (
    DamagedError,
    NameTakenError,
    StoreError,
    UnknownAdapterError,
    UnreachableError,
)
from manytune.store.adapters import open_adapter
from manytune.store.manifest import Manifest
from manytune.store.remote.store import SharedStore


def objects_of(store: SharedStore) -> dict[str, int]:
    return store._objects.list("objects")


def object_path(store: SharedStore, file: str) -> str:
    return next(f"{store.location.path}/{name}" for name in objects_of(store) if name.endswith(f"/{file}"))


def overwrite(store: SharedStore, file: str, content: bytes) -> None:
    store._objects._files.pipe_file(object_path(store, file), content)


def files_in(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_what_one_machine_adds_another_finds_by_name_and_digest_and_fetches_whole(
    url: str, sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    added = SharedStore(url).add(sources[0], name="user/one", tags=["production"])
    monkeypatch.setenv("MANYTUNE_CACHE", str(tmp_path / "another machine"))
    there = SharedStore(url)
    assert there.names() == {"user/one": added.digest}
    assert there.resolve(added.digest[:8]) == added.digest
    (entry,) = there.entries(tag="production")
    assert (entry.names, entry.tags, entry.is_here) == (("user/one",), ("production",), False)
    directory = there.path("user/one")
    assert files_in(directory) == files_in(sources[0])
    assert open_adapter(directory).manifest == entry.manifest == Manifest.read(sources[0] / "manifest.json")
    assert there.entry("user/one").is_here


def test_an_adapter_is_fetched_once(url: str, sources: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    store = SharedStore(url)
    digest = store.add(sources[0]).digest
    fetched: list[str] = []
    download = store._objects.download

    def counting(name: str, *args: Any, **options: Any) -> None:
        fetched.append(name)
        download(name, *args, **options)

    monkeypatch.setattr(store._objects, "download", counting)
    threads = [threading.Thread(target=store.fetch, args=(digest,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.fetch(digest)
    assert sorted(Path(name).name for name in fetched) == sorted(
        {file.name for file in sources[0].iterdir()} - {"manifest.json"}
    )


@pytest.mark.parametrize("how", ["flipped", "cut", "longer"])
def test_an_object_that_was_changed_is_named_and_not_kept(how: str, url: str, sources: list[Path]) -> None:
    store = SharedStore(url)
    digest = store.add(sources[0], name="one").digest
    content = (sources[0] / "adapter_model.safetensors").read_bytes()
    changed = {
        "flipped": content[:-1] + bytes([content[-1] ^ 1]),
        "cut": content[:-1],
        "longer": content + b"x",
    }
    overwrite(store, "adapter_model.safetensors", changed[how])
    with pytest.raises(DamagedError, match=rf"{digest}/.*/adapter_model\.safetensors: .*wasn't kept"):
        store.path("one")
    assert not list(store.root.glob("objects/*/*"))
    assert not list(store.root.glob("staging/*"))
    overwrite(store, "adapter_model.safetensors", content)
    open_adapter(store.path("one"))


@pytest.mark.parametrize("how", ["lost", "cut"])
def test_an_adapter_whose_object_is_lost_or_cut_off_is_mended_by_adding_it_again(
    how: str, url: str, sources: list[Path]
) -> None:
    store = SharedStore(url)
    digest = store.add(sources[0], name="one", tags=["production"]).digest
    store.add_scores("one", {"rougeL": 0.5})
    if how == "lost":
        store._objects._files.rm(object_path(store, "adapter_model.safetensors"))
    else:
        overwrite(store, "adapter_model.safetensors", b"half")
    with pytest.raises(DamagedError, match=r"adapter_model\.safetensors: .*Add the adapter again from"):
        store.path("one")
    SharedStore(url).add(sources[0])
    store.refresh()
    assert files_in(store.path("one")).keys() == files_in(sources[0]).keys()
    entry = store.entry(digest)
    assert (entry.names, entry.tags, entry.manifest.scores["rougeL"]) == (("one",), ("production",), 0.5)
    assert len({Path(name).parent for name in objects_of(store)}) == 1, (
        "what was left of the first is removed"
    )


def test_a_copy_here_that_was_cut_off_is_fetched_again(url: str, sources: list[Path]) -> None:
    store = SharedStore(url)
    store.add(sources[0], name="one")
    tensors = store.path("one") / "adapter_model.safetensors"
    tensors.chmod(0o600)
    tensors.write_bytes(b"half")
    assert files_in(store.path("one")) == files_in(sources[0])
    tensors.unlink()
    assert files_in(store.path("one")) == files_in(sources[0])


def test_an_interrupted_download_leaves_nothing(
    url: str, sources: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SharedStore(url)
    store.add(sources[0], name="one")

    def interrupted(name: str, target: Path, **_: Any) -> None:
        target.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store._objects, "download", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.path("one")
    assert not list(store.root.glob("objects/*/*")) and not list(store.root.glob("staging/*"))
    open_adapter(store.path("one"))


def test_names_move_only_when_asked_to_and_an_equal_adapter_is_kept_once(
    url: str, sources: list[Path]
) -> None:
    store, other = SharedStore(url), SharedStore(url)
    first = store.add(sources[0], name="one").digest
    with pytest.raises(NameTakenError, match=f"belongs to adapter {first[:12]}"):
        other.add(sources[1], name="one")
    second = other.add(sources[1], name="one", move=True).digest
    assert other.add(sources[0], name="again").digest == first
    store.refresh()
    assert store.names() == {"again": first, "one": second}
    uploads = {Path(name).parent for name in objects_of(store)}
    assert len(uploads) == 2, "nothing is left of the refused upload and of the second one of equal content"


def test_aliases_tags_and_scores_are_seen_elsewhere(url: str, sources: list[Path]) -> None:
    store, other = SharedStore(url), SharedStore(url)
    store.add(sources[0], name="one", tags=["old"])
    directory = other.path("one")
    other.alias("one", "two")
    other.tag("two", "new")
    other.untag("two", "old")
    other.add_scores("two", {"rougeL": 0.5})
    stamp = store.stamp(store.resolve("one"))
    store.refresh()
    entry = store.entry("two")
    assert (entry.names, entry.tags) == (("one", "two"), ("new",))
    assert entry.manifest.scores == {"validation_loss": 1.0, "rougeL": 0.5}
    assert store.stamp(entry.digest) != stamp
    assert other.path("one") == directory
    assert Manifest.read(directory / "manifest.json") == entry.manifest
    store.unalias("one")
    with pytest.raises(UnknownAdapterError, match="Did you mean 'two'"):
        store.resolve("tow")


def test_removing_takes_an_adapter_with_its_names_and_objects(url: str, sources: list[Path]) -> None:
    store, other = SharedStore(url), SharedStore(url)
    digest = store.add(sources[0], name="one").digest
    other.add(sources[1], name="two")
    store.path("one")
    other.names()
    store.remove("one")
    assert store.names().keys() == {"two"} and digest not in str(objects_of(store))
    assert not store.directory(digest).exists()
    with pytest.raises(UnknownAdapterError):
        other.path("one")  # it has the former index, and finds out when the objects are gone


def test_an_adapter_that_is_removed_while_another_writer_adds_it_is_whole_afterwards(
    url: str, sources: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    remover, adder = SharedStore(url), SharedStore(url)
    digest = remover.add(sources[0], name="one").digest
    remover.refresh()
    newest = adder._journal.newest

    def removed_after_the_adder_has_looked(*known: Any) -> Any:
        index = newest(*known)
        if digest in index.adapters:
            remover.remove("one")
        return index

    adder.refresh()
    monkeypatch.setattr(adder._journal, "newest", removed_after_the_adder_has_looked)
    adder.add(sources[0], name="two")
    fresh = SharedStore(url)
    assert fresh.names() == {"two": digest}
    open_adapter(fresh.path("two"))


def test_what_a_killed_writer_uploaded_is_removed_a_day_later(
    url: str, sources: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SharedStore(url)
    store.add(sources[0], name="one")
    store.add(sources[1], name="two")
    files, prefix = store._objects._files, f"{store.location.path}/objects/ab/{'ab' * 32}"
    for upload in ("20200101T000000Z-0123456789abcdef", "29990101T000000Z-0123456789abcdef"):
        files.pipe_file(f"{prefix}/{upload}/adapter_config.json", b"{}")
    files.pipe_file(f"{prefix}/notes.txt", b"not ours")
    store.remove("one")
    left = " ".join(objects_of(store))
    assert "20200101T" not in left and "29990101T" in left and "notes.txt" in left
    open_adapter(store.path("two"))


def test_a_storage_that_cannot_be_reached_takes_nothing_away_that_is_here(
    url: str, sources: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SharedStore(url)
    store.add(sources[0], name="one")
    store.add(sources[1], name="two")
    directory = store.path("one")

    def away(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no route to host")

    with monkeypatch.context() as patch:
        for started in (store, restarted := SharedStore(url)):
            started._objects.pauses = ()
            for operation in ("find", "cat_file", "pipe_file"):
                patch.setattr(started._objects._files, operation, away)
        with pytest.raises(UnreachableError, match=f"{url}: .*no route to host.*try again"):
            store.refresh()
        assert store.unreachable is not None
        assert store.path("one") == directory
        with pytest.raises(UnreachableError):
            store.path("two")
        with pytest.raises(UnreachableError):
            restarted.names()
        restarted.refresh_or_begin_with_saved()
        assert restarted.names().keys() == {"one", "two"} and restarted.path("one") == directory
    store.refresh()
    assert store.unreachable is None
    open_adapter(store.path("two"))


def test_the_least_recently_used_are_evicted_to_stay_within_the_bound(
    url: str, sources: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    store = SharedStore(url)
    for number, source in enumerate(sources):
        store.add(source, name=str(number))
    first, second = store.path("0"), store.resolve("1")
    size = store.entry("1").nbytes
    monkeypatch.setenv("MANYTUNE_STORE_CACHE_GIB", str(1.5 * size / (1 << 30)))
    store.fetch(second)
    assert first.is_dir(), "it was used within the last hour"
    store._mirror.remove(second)
    os.utime(first, (0, 0))
    store.fetch(second)
    assert not first.exists() and store.directory(second).is_dir()
    monkeypatch.setenv("MANYTUNE_STORE_CACHE_GIB", str(0.5 * size / (1 << 30)))
    with pytest.raises(StoreError, match="MANYTUNE_STORE_CACHE_GIB"):
        store.path("0")


def test_what_is_kept_on_this_machine_is_private(url: str, sources: list[Path]) -> None:
    store = SharedStore(url)
    store.add(sources[0], name="one")
    store.path("one")
    assert store.root.stat().st_mode & 0o077 == 0 and store.root.parent.stat().st_mode & 0o077 == 0
