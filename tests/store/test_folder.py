"""A directory with an adapter in each subdirectory, followed as a store without being written to."""

from __future__ import annotations

import logging
import os
import shutil
import time
from pathlib import Path

import pytest
from tests.store.adapters_made import make_adapter
from tests.store.peft_made import save_peft

from manytune.errors import StoreError, UnreachableError
from manytune.store.base import Base
from manytune.store.folder import FolderStore, adapters_in, store_at
from manytune.store.store import AdapterStore


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two adapters of HF PEFT."""
    monkeypatch.setenv("MANYTUNE_CACHE", str(tmp_path / "cache"))
    for seed, name in enumerate(("a", "b")):
        aged(save_peft(tmp_path / "adapters" / name, seed))
    return tmp_path / "adapters"


def aged(directory: Path) -> Path:
    """As if nobody had written for a while."""
    for path in directory.iterdir():
        os.utime(path, (time.time() - 60, time.time() - 60))
    return directory


def followed(folder: Path, base: Base) -> FolderStore:
    store = FolderStore(folder, base)
    store.refresh()
    return store


def content(store: AdapterStore, name: str) -> bytes:
    return (store.path(name) / "adapter_model.safetensors").read_bytes()


def test_its_adapters_are_those_of_the_subdirectories(folder: Path, tiny_base: Base) -> None:
    (folder / ".hidden").mkdir()
    (folder / "notes").mkdir()
    store = followed(folder, tiny_base)
    assert sorted(store.names()) == ["a", "b"]
    assert content(store, "a") == (folder / "a" / "adapter_model.safetensors").read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == [".hidden", "a", "b", "notes"]


def test_new_versions_new_adapters_and_removed_ones_are_followed(folder: Path, tiny_base: Base) -> None:
    store = followed(folder, tiny_base)
    former = store.resolve("a")
    aged(save_peft(folder / "a", 7))
    aged(save_peft(folder / "c", 8))
    shutil.rmtree(folder / "b")
    store.refresh()
    assert sorted(store.names()) == ["a", "c"]
    assert content(store, "a") == (folder / "a" / "adapter_model.safetensors").read_bytes()
    assert store.resolve("a") != former


def test_a_new_version_that_cannot_be_read_leaves_the_former_one(
    folder: Path, tiny_base: Base, caplog: pytest.LogCaptureFixture
) -> None:
    store = followed(folder, tiny_base)
    whole = content(store, "a")
    file = folder / "a" / "adapter_model.safetensors"
    file.write_bytes(whole[:-4])
    aged(folder / "a")
    with caplog.at_level(logging.WARNING):
        store.refresh()
    assert content(store, "a") == whole
    assert "cut off" in store.problems["a"] and "a can't be served" in caplog.text
    file.write_bytes(whole)
    aged(folder / "a")
    store.refresh()
    assert store.problems == {}


def test_a_file_that_is_being_written_is_read_when_it_is_whole(
    folder: Path, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = followed(folder, tiny_base)
    other = save_peft(folder.parent / "other", 9)
    whole = (other / "adapter_model.safetensors").read_bytes()
    file = folder / "a" / "adapter_model.safetensors"
    file.write_bytes(whole[: len(whole) // 2])
    monkeypatch.setattr("manytune.store.folder.time.sleep", lambda _: file.write_bytes(whole))
    store.refresh()
    assert content(store, "a") == whole and store.problems == {}


def test_what_was_removed_while_no_server_ran_is_gone_after_the_next_start(
    folder: Path, tiny_base: Base
) -> None:
    former = followed(folder, tiny_base).resolve("b")
    shutil.rmtree(folder / "b")
    store = followed(folder, tiny_base)
    assert sorted(store.names()) == ["a"]
    assert not store.directory(former).exists()


def test_names_that_no_request_can_have_are_reported(
    folder: Path, tiny_base: Base, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "a").rename(folder / "a b")
    with caplog.at_level(logging.WARNING):
        store = followed(folder, tiny_base)
    assert sorted(store.names()) == ["b"]
    assert "'a b' can't be a name" in caplog.text


def test_an_adapter_that_names_another_base_is_warned_of(
    folder: Path, tiny_base: Base, caplog: pytest.LogCaptureFixture
) -> None:
    config = folder / "a" / "adapter_config.json"
    text = config.read_text()
    assert '"base_model_name_or_path": ""' in text or '"base_model_name_or_path": null' in text
    config.write_text(
        text.replace('"base_model_name_or_path": ""', '"base_model_name_or_path": "org/Other-7B"').replace(
            '"base_model_name_or_path": null', '"base_model_name_or_path": "org/Other-7B"'
        )
    )
    with caplog.at_level(logging.WARNING):
        followed(folder, tiny_base)
    assert "a says that its base is org/Other-7B" in caplog.text
    assert "b says" not in caplog.text


def test_one_adapter_a_directory_of_runs_and_a_store_that_appears_are_found(
    folder: Path, tiny_base: Base, tmp_path: Path
) -> None:
    assert adapters_in(folder / "a") == {"a": folder / "a"}
    run = make_adapter(tmp_path / "runs" / "summaries" / "adapter", tiny_base)
    assert adapters_in(tmp_path / "runs") == {"summaries": run}
    store = followed(tmp_path / "later", tiny_base)
    assert store.names() == {}
    entry = AdapterStore(tmp_path / "later").add(run, name="s")
    store.refresh()
    assert store.names() == {"s": entry.digest}


def test_a_store_is_served_from_where_it_is_and_something_else_is_refused(
    folder: Path, tiny_base: Base, tmp_path: Path
) -> None:
    AdapterStore(tmp_path / "store").add(make_adapter(tmp_path / "made", tiny_base))
    assert store_at(tmp_path / "store", tiny_base).root == tmp_path / "store"
    assert isinstance(store_at(tmp_path / "none", tiny_base), FolderStore)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.safetensors").touch()
    with pytest.raises(StoreError, match="has no subdirectories with an adapter"):
        store_at(tmp_path / "other", tiny_base)
    with pytest.raises(StoreError, match=r"manytune serve --adapters .*manytune adapters add .*--base BASE"):
        AdapterStore(folder)


def test_a_folder_that_disappears_isnt_an_empty_one(folder: Path, tiny_base: Base) -> None:
    store = followed(folder, tiny_base)
    folder.rename(folder.with_name("unmounted"))
    with pytest.raises(
        UnreachableError, match=r"adapters: the directory was here and isn't now\. Mount it again"
    ):
        store.refresh()
    assert sorted(store.names()) == ["a", "b"]
    folder.with_name("unmounted").rename(folder)
    store.refresh()
    assert sorted(store.names()) == ["a", "b"]


def test_an_adapter_that_was_named_meanwhile_isnt_removed_as_one_without_a_name(
    folder: Path, tmp_path: Path, tiny_base: Base
) -> None:
    store = FolderStore(folder, tiny_base)
    digest = store.add(make_adapter(tmp_path / "made", tiny_base)).digest
    store.alias(digest, "a")
    store.remove_unnamed(digest)
    assert store.resolve("a") == digest
    store.unalias("a")
    store.remove_unnamed(digest)
    store.remove_unnamed(digest)  # another process was faster
    assert digest not in store
