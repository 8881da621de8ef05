"""The store on a real S3 server."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from tests.faults.wire import Wire
from tests.random_cases import cases
from tests.store.remote.changes import entering, numbers_in
from tests.store.remote.s3_server import environment, s3_server

from manytune.errors import DamagedError, StoreError, UnreachableError
from manytune.store.adapters import open_adapter
from manytune.store.remote.index import Index, Kept
from manytune.store.remote.journal import Journal
from manytune.store.remote.location import location_of
from manytune.store.remote.objects import Objects
from manytune.store.remote.store import SharedStore


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture
def url(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new bucket."""
    for name, value in environment(server).items():
        monkeypatch.setenv(name, value)
    bucket = f"bucket-{secrets.token_hex(4)}"
    fsspec.filesystem("s3", skip_instance_cache=True).mkdir(bucket)
    return f"s3://{bucket}/adapters"


class Requests:
    """Counts the requests of a store."""

    def __init__(self, store: SharedStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[str] = []
        files = store._objects._files
        call = files._call_s3

        async def counting(method: str, *args: Any, **options: Any) -> Any:
            self.made.append(method)
            return await call(method, *args, **options)

        monkeypatch.setattr(files, "_call_s3", counting)


def test_an_adapter_goes_to_s3_and_back(url: str, sources: list[Path]) -> None:
    store = SharedStore(url)
    digest = store.add(sources[0], name="user/one", tags=["production"]).digest
    directory = store.path("user/one")
    assert {file.name: file.read_bytes() for file in directory.iterdir()} == {
        file.name: file.read_bytes() for file in sources[0].iterdir()
    }
    (name,) = (name for name in store._objects.list("objects") if name.endswith(".safetensors"))
    store._objects._files.pipe_file(f"{store.location.path}/{name}", b"something else")
    store._mirror.remove(digest)
    with pytest.raises(DamagedError, match=r"s3://.*adapter_model\.safetensors"):
        store.path("user/one")
    store.remove("user/one")
    assert not store._objects.list("objects") and SharedStore(url).names() == {}


def test_no_change_of_two_writers_at_once_is_lost(url: str) -> None:
    each = cases(8)  # 80 each in `make test-deep`

    def write(first: int) -> None:
        journal, index = Journal(Objects(location_of(url))), Index()
        for number in range(first, first + each):
            index = journal.change(entering(number), known=index)

    threads = [threading.Thread(target=write, args=(first,)) for first in (0, 1000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    index = Journal(Objects(location_of(url))).newest()
    assert index.number == 2 * each
    assert numbers_in(index) == [*range(each), *range(1000, 1000 + each)]


def test_a_thousand_adapters_are_listed_in_two_requests_and_looked_at_again_in_one(
    url: str, sources: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SharedStore(url)
    entry = store.add(sources[0], name="one")
    ((digest, kept),) = store._known().adapters.items()

    def many(index: Any) -> Any:
        for number in range(999):
            other = Kept(kept.upload, kept.files, kept.manifest)
            index = index.with_name(f"name-{number}", digest, move=False, where="")
            index = index.with_adapter(f"{number:064x}", other)
        return index

    store._change(many)
    fresh = SharedStore(url)
    requests = Requests(fresh, monkeypatch)
    unreadable: list[str] = []
    found = fresh.entries(unreadable=lambda digest, _: unreadable.append(digest))
    assert [one.digest for one in found] == [entry.digest] and len(found[0].names) == 1000
    assert len(unreadable) == 999, "they aren't what their digests say, which hides nothing else"
    assert requests.made == ["list_objects_v2", "get_object"]
    fresh.refresh()
    assert requests.made[2:] == ["list_objects_v2"]


def test_a_bucket_that_is_not_there_is_named(url: str, sources: list[Path]) -> None:
    for operation in (SharedStore.names, lambda store: store.add(sources[0])):
        with pytest.raises(StoreError, match=r"there is no bucket 'no-such-bucket'.*check the URL"):
            operation(SharedStore("s3://no-such-bucket/adapters"))


def test_credentials_that_are_missing_are_named(
    url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(StoreError, match=r"refuses your credentials.*AWS_ACCESS_KEY_ID"):
        SharedStore(url).names()


def test_a_machine_that_is_cut_off_from_the_storage_keeps_what_it_has_and_goes_on_afterwards(
    url: str, server: str, sources: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    others = SharedStore(url)
    others.add(sources[0], name="one")
    others.add(sources[1], name="two")
    wire = Wire(server, "half", at=3)
    monkeypatch.setenv("AWS_ENDPOINT_URL", wire.address)
    store = SharedStore(url)
    store._objects.pauses = ()
    directory = store.path("one")
    store._mirror.remove(others.resolve("two"))
    wire.watch()
    store.refresh()
    with pytest.raises(UnreachableError, match=f"{url}: the storage can't be reached now"):
        store.path("two")  # its second file
    with pytest.raises(UnreachableError):
        store.refresh()
    assert wire.is_cut and not store.directory(others.resolve("two")).exists()
    assert store.path("one") == directory and set(store.names()) == {"one", "two"}
    wire.mend()
    others.alias("two", "one", move=True)
    store.refresh()
    open_adapter(store.path("one"))


def test_a_server_that_is_gone_is_an_outage_and_not_a_mistake(
    url: str, sources: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SharedStore(url)
    store.add(sources[0], name="one")
    directory = store.path("one")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    cut_off = SharedStore(url)
    cut_off._objects.pauses = ()
    with pytest.raises(UnreachableError, match=f"{url}: the storage can't be reached now"):
        cut_off.names()
    cut_off.refresh_or_begin_with_saved()
    assert cut_off.path("one") == directory
    open_adapter(directory)
