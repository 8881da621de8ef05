"""SIGKILL at any moment of adding and removing: every adapter is whole or absent, and the next writer goes on."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from tests.random_cases import cases
from tests.store.adapters_made import make_adapter
from tests.store.tiny import save_tiny_base

from manytune.store.base import load_base
from manytune.store.resident import read_resident
from manytune.store.store import AdapterStore

PROCESSES = multiprocessing.get_context("fork")
SEED = 20240811
MOMENTS = cases(15)
#: What changes the disk, and so the moments between which a kill can make a difference.
CALLS = ("rename", "replace", "mkdir", "unlink", "rmdir", "fsync", "open")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("sources")
    base = load_base(str(save_tiny_base(root / "base")))
    return [make_adapter(root / str(seed), base, seed=seed) for seed in range(3)]


def change(root: Path, sources: list[Path]) -> None:
    """All that a writer does: the store is made, filled, changed and emptied in part."""
    store = AdapterStore(root)
    store.add(sources[0], name="first", tags=["t"])
    store.add(sources[1], name="second")
    store.alias("first", "alias")
    store.add(sources[1], name="alias", move=True)
    store.add_scores("second", {"rouge1": 0.5})
    store.untag("first", "t")
    store.alias("second", "gone")
    store.unalias("gone")
    store.remove("first")
    store.add(sources[2], name="first", tags=["t"])


def counting(root: Path, sources: list[Path], sender: Connection) -> None:
    """Work in this process, telling of each call before it is made, and waiting to be let on."""

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def told(*args: Any, **kwargs: Any) -> Any:
            sender.send(call.__name__)
            sender.recv()
            return call(*args, **kwargs)

        return told

    for name in CALLS:
        setattr(os, name, watched(getattr(os, name)))
    change(root, sources)


def run(root: Path, sources: list[Path], kill_at: int | None = None) -> int:
    """Do it all in another process, killed before its call of that number; return how many calls there were."""
    mine, theirs = PROCESSES.Pipe()
    process = PROCESSES.Process(target=counting, args=(root, sources, theirs))
    process.start()
    theirs.close()
    calls = 0
    while True:
        try:
            mine.recv()
        except EOFError:
            break
        calls += 1
        if calls == kill_at:
            process.kill()
            break
        mine.send(None)
    process.join()
    mine.close()
    assert process.exitcode == (-signal.SIGKILL if calls == kill_at else 0)
    return calls


def check_whole(root: Path, sources: list[Path], tmp_path: Path) -> None:
    known = {AdapterStore(tmp_path / "known").add(source).digest for source in sources}
    store = AdapterStore(root)
    entries = store.entries()
    assert {entry.digest for entry in entries} <= known
    for entry in entries:
        assert read_resident(entry.path).digest == entry.digest  # checks every file against its hash
        for name in entry.names:
            assert store.resolve(name) == entry.digest
    for name in (path.name for path in (root / "names").glob("*")):
        assert name in store, "a name without its adapter"


@pytest.mark.slow
def test_a_writer_killed_at_any_call_leaves_whole_adapters_and_the_next_one_finishes(
    sources: list[Path], tmp_path: Path
) -> None:
    total = run(tmp_path / "whole", sources)
    expected = {str(entry): entry.digest for entry in AdapterStore(tmp_path / "whole").entries()}
    assert sorted(expected) == ["alias", "first"]
    draw = random.Random(SEED)
    moments = sorted(draw.sample(range(1, total + 1), k=min(total, MOMENTS)))
    for moment in moments:
        root = tmp_path / f"killed{moment}"
        run(root, sources, kill_at=moment)
        check_whole(root, sources, tmp_path)
        store = AdapterStore(root)
        if "first" in store:
            store.remove("first")
        change_again = {"alias": sources[1], "first": sources[2]}
        for name, source in change_again.items():
            store.add(source, name=name, move=True)
        assert {str(e): e.digest for e in store.entries() if str(e) in expected} == expected
        assert list((root / "staging").iterdir()) == []


def test_a_killed_writer_does_not_keep_others_waiting(sources: list[Path], tmp_path: Path) -> None:
    root = tmp_path / "store"
    total = run(tmp_path / "whole", sources)
    run(root, sources, kill_at=total // 2)
    store = AdapterStore(root)
    assert store.add(sources[0]).digest in store
