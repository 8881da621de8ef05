"""A training by two processes of which the first, which owns the files, is killed; the launcher then ends the other."""

from __future__ import annotations

import os
import random
import shutil
import socket
from functools import partial
from pathlib import Path

from tests.faults.children import Acknowledge, Child, Ended
from tests.faults.injector import Fault
from tests.faults.scenario import checked
from tests.faults.stores import making
from tests.faults.trainings import check_same, recipe_of

from manytune.store.run_directory import RunDirectory
from manytune.training.distributed.processes import joined, leave
from manytune.training.run import run

_LAST_POINT = 125  # of the first process


def train_together(
    root: Path, acknowledge: Acknowledge, *, shared: Path, rank: int, port: int, resume: bool
) -> None:
    """Train as one of two processes."""
    group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in group.items()}}
    processes = joined("cpu")
    run(recipe_of(shared, "LoRA", root), resume=resume, processes=processes)
    processes.wait()
    leave()
    acknowledge("trained")


def train_pair(shared: Path, root: Path, fault: Fault | None = None, *, resume: bool = False) -> Ended:
    """Train with two processes; gives how the first ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    act = partial(train_together, shared=shared, port=port, resume=resume)
    first, second = Child(partial(act, rank=0), root, fault), Child(partial(act, rank=1), root)
    ended = first.ended()
    if ended.how != "done":
        second.kill()  # as the launcher does
    second.ended()
    return ended


def whole_pair(shared: Path) -> Path:
    """A training by two processes that nothing disturbed; made once."""
    whole = shared / "whole-of-two"
    with making:
        if not whole.is_dir():
            made = train_pair(shared, whole)
            assert made.how == "done", made.said
    return whole


def run_pair(shared: Path, seed: int) -> str:
    """Two processes train, the first is killed at a point, and two go on."""
    whole, draw = whole_pair(shared), random.Random(f"pair {seed}")
    root = shared / "cases" / f"pair-{seed}" / "root"
    root.parent.mkdir(parents=True)
    ended = train_pair(
        shared, root, Fault(draw.choice(["kill", "cut", "power"]), draw.randint(1, _LAST_POINT))
    )
    assert ended.how in ("killed", "done"), ended.said
    directory, outcome = RunDirectory(root), "complete already"
    if not directory.finished:
        outcome = "resumed to the same bits" if directory.begun else "started again to the same bits"
        ended = train_pair(shared, root, resume=directory.begun)
        assert ended.how == "done", ended.said
    checked(partial(_check, whole=whole), root)
    shutil.rmtree(root.parent)
    return outcome


def _check(root: Path, acknowledge: Acknowledge, *, whole: Path) -> None:
    check_same(RunDirectory(root), RunDirectory(whole))
    acknowledge("the same")
