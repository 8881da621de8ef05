"""A server whose store can't be reached for a while: what is in memory answers, and then it goes on."""

from __future__ import annotations

import asyncio
import builtins
import errno
import io
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from tests.faults.children import Acknowledge
from tests.faults.stores import sources_in

from manytune.errors import ManytuneError
from manytune.server.adapters.registry import AdapterRegistry
from manytune.server.adapters.watcher import Watcher
from manytune.server.http_errors import HttpError, http_error_of
from manytune.store.base import load_base
from manytune.store.store import AdapterStore

KINDS = {
    "gone": "the store's directory isn't there",
    "empty": "an empty directory in its place",
    "stale": "each read fails (ESTALE)",
    "slow": "each read fails (ETIMEDOUT)",
}
_ERRORS = {"stale": errno.ESTALE, "slow": errno.ETIMEDOUT}


class Partition:
    """Cuts a process off from a directory at its n-th read there.

    Args:
        root: The directory.
        kind: One of `KINDS`.
        at: At which read; 0 for none.
    """

    def __init__(self, root: Path, kind: str, at: int) -> None:
        self._root, self._kind, self._at = str(root), kind, at
        self._is_watching = False
        self.reads = 0
        self.is_cut = False

    def watch(self) -> None:
        """Replace the calls that read, and count from now on."""
        for name in ("stat", "lstat", "listdir", "scandir", "open"):
            setattr(os, name, self._watched(getattr(os, name)))
        builtins.open = io.open = self._watched(io.open)  # type: ignore[assignment]
        self._is_watching = True

    def mend(self) -> None:
        """The directory is there again, from now on."""
        self._is_watching = False
        away = Path(f"{self._root}-away")
        if away.is_dir():
            if Path(self._root).is_dir():
                Path(self._root).rmdir()
            away.rename(self._root)

    def _watched(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any = ".", *given: Any, **named: Any) -> Any:
            if self._is_watching and isinstance(path, str | Path) and str(path).startswith(self._root):
                self._read()
            return real(path, *given, **named)

        return call

    def _read(self) -> None:
        self.reads += 1
        if not self._at or self.reads < self._at:
            return
        if self._kind in _ERRORS:
            self.is_cut = True
            raise OSError(_ERRORS[self._kind], os.strerror(_ERRORS[self._kind]), self._root)
        if not self.is_cut:
            self.is_cut = True
            os.rename(self._root, f"{self._root}-away")
            if self._kind == "empty":
                os.mkdir(self._root)


class _NoLoop:
    """A loop of an engine that hasn't begun."""

    is_ready = False


class Cut(Protocol):
    """What cuts a server off from its store.

    Attributes:
        reads: How often the store was read since it was watched.
        is_cut: Whether the server is, or was, cut off.
    """

    reads: int
    is_cut: bool

    def watch(self) -> None:
        """Count from now on."""

    def mend(self) -> None:
        """The store can be reached again, from now on."""


def serve(root: Path, acknowledge: Acknowledge, *, shared: Path, kind: str = "gone", at: int = 0) -> None:
    """`serve_while_cut` from a directory."""
    partition = Partition(root, kind, at)
    serve_while_cut(AdapterStore(root), AdapterStore(root), partition, acknowledge, shared=shared)


def serve_while_cut(
    store: AdapterStore, served: AdapterStore, partition: Cut, acknowledge: Acknowledge, *, shared: Path
) -> None:
    """Ask for adapters while the store goes, comes back, and a name is promoted; acknowledges the number of reads.

    Args:
        store: The store as others reach it all the time.
        served: The same as the server reaches it.
        partition: What cuts it off.
        acknowledge: Receives the number.
        shared: Where the adapters and their base are.
    """
    sources = sources_in(shared)
    first, second, third = (store.add(sources / str(seed), name=f"n{seed}").digest for seed in range(3))
    base = load_base(str(shared / "base"))
    size = store.entry("n0").nbytes
    adapters = AdapterRegistry(served, base, memory=4 * size, base_name="base")
    watcher = Watcher(adapters, _NoLoop(), 1.0)  # type: ignore[arg-type]
    asyncio.run(watcher.check())
    adapters.pin("n0")
    adapters.load("n1")
    partition.watch()
    while_cut: list[str] = []
    for _ in range(2):
        for name, expected in (("n0", first), ("n1", second), ("n2", third)):
            try:
                model = adapters.acquire(name)
                assert model.digest == expected, name
                adapters.release(model)
                adapters.look_up(name)
            except (HttpError, ManytuneError) as error:
                found = error if isinstance(error, HttpError) else http_error_of(error)
                assert partition.is_cut and found.status == 503 and found.message, (
                    name,
                    found.status,
                    str(found),
                )
                assert name == "n2" or not while_cut, f"{name} is in memory: {found.message}"
        try:
            asyncio.run(watcher.check())
        except (ManytuneError, OSError, HttpError) as error:  # as the watcher's own task does
            assert partition.is_cut, error
            while_cut.append(str(error))
    partition.mend()
    assert adapters.is_pinned("n0")
    store.alias("n1", "n0", move=True)
    asyncio.run(watcher.check())
    for name, expected in (("n0", second), ("n1", second), ("n2", third)):
        model = adapters.acquire(name)
        assert model.digest == expected
        adapters.release(model)
        assert adapters.look_up(name).error is None
    assert {listed.name for listed in adapters.catalogue.listed} == {"n0", "n1", "n2"}
    assert adapters.cache.counters().pinned == 1
    acknowledge(partition.reads)


def partitioned(folder: Path, kind: str, at: int) -> tuple[Path, Any]:
    """Where a case is, and its work."""
    sources_in(folder)
    root = folder / "cases" / f"partition-{kind}-{at}" / "store"
    shutil.rmtree(root.parent, ignore_errors=True)
    root.parent.mkdir(parents=True)
    return root, partial(serve, shared=folder, kind=kind, at=at)
