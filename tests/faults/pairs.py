"""A training by two processes of which one is killed; the launcher then ends the other.

As a program, `python -m tests.faults.pairs ROOT SHARED SHARDING RANK EXCHANGE` is one of these processes.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import sys
from functools import partial
from pathlib import Path
from typing import Any

from tests.faults.children import Acknowledge, Child, Ended, in_child
from tests.faults.injector import Fault, die
from tests.faults.scenario import check_sentence, checked
from tests.faults.stores import making
from tests.faults.trainings import check_same, prepare, recipe_of

from manytune.store.run_directory import RunDirectory
from manytune.training.distributed.failures import said_once
from manytune.training.distributed.launch import launch
from manytune.training.distributed.processes import Processes, joined, leave
from manytune.training.recipe import Recipe
from manytune.training.run import run

_LAST_POINT = 125  # of the first process
_LAST_EXCHANGE = 17  # of numbers between the two


def recipe_of_two(shared: Path, root: Path, sharding: str) -> Recipe:
    """LoRA's recipe for two processes."""
    recipe = recipe_of(shared, "LoRA", root)
    return recipe.model_copy(update={"training": recipe.training.model_copy(update={"sharding": sharding})})


def train_together(
    root: Path,
    acknowledge: Acknowledge,
    *,
    shared: Path,
    sharding: str,
    rank: int,
    port: int,
    resume: bool,
) -> None:
    """Train as one of two processes."""
    group = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in group.items()}}
    processes = joined("cpu")
    run(recipe_of_two(shared, root, sharding), resume=resume, processes=processes)
    processes.wait()
    leave()
    acknowledge("trained")


def train_pair(
    shared: Path, root: Path, fault: Fault | None = None, *, resume: bool = False, sharding: str = "none"
) -> Ended:
    """Train with two processes; gives how the first ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    act = partial(train_together, shared=shared, sharding=sharding, port=port, resume=resume)
    first, second = Child(partial(act, rank=0), root, fault), Child(partial(act, rank=1), root)
    ended = first.ended()
    if ended.how != "done":
        second.kill()  # as the launcher does
    second.ended()
    return ended


def whole_pair(shared: Path, sharding: str = "none") -> Path:
    """A training by two processes that nothing disturbed; made once."""
    prepare(shared)
    whole = shared / f"whole-of-two-{sharding}"
    with making:
        if not whole.is_dir():
            made = train_pair(shared, whole, sharding=sharding)
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
    return _gone_on(shared, root, whole)


def run_launched(shared: Path, seed: int) -> str:
    """Two processes train as `--processes 2` starts them, either is killed when they exchange numbers, two go on."""
    draw = random.Random(f"launched {seed}")
    sharding, rank, exchange = (
        draw.choice(["none", "full"]),
        draw.randrange(2),
        draw.randint(1, _LAST_EXCHANGE),
    )
    whole = whole_pair(shared, sharding)
    root = shared / "cases" / f"launched-{seed}" / "root"
    root.parent.mkdir(parents=True)
    ended = in_child(partial(_launch, shared=shared, sharding=sharding, rank=rank, exchange=exchange), root)
    assert ended.how in ("refused", "done"), ended.said
    if ended.how == "refused":
        assert f"process {rank} of 2 was killed by SIGKILL" in ended.said, ended.said
        check_sentence(f"/{ended.said}")
    return _gone_on(shared, root, whole, sharding)


def _launch(
    root: Path, acknowledge: Acknowledge, *, shared: Path, sharding: str, rank: int, exchange: int
) -> None:
    arguments = (root, shared, sharding, rank, exchange)
    assert not launch(["-m", "tests.faults.pairs", *map(str, arguments)], 2)
    acknowledge("trained")


def _gone_on(shared: Path, root: Path, whole: Path, sharding: str = "none") -> str:
    """Let two processes run the next command, if the run isn't complete."""
    directory, outcome = RunDirectory(root), "complete already"
    if not directory.finished:
        outcome = "resumed to the same bits" if directory.begun else "started again to the same bits"
        ended = train_pair(shared, root, resume=directory.begun, sharding=sharding)
        assert ended.how == "done", ended.said
    checked(partial(_check, whole=whole), root)
    shutil.rmtree(root.parent)
    return outcome


def _check(root: Path, acknowledge: Acknowledge, *, whole: Path) -> None:
    check_same(RunDirectory(root), RunDirectory(whole))
    acknowledge("the same")


def _end_at(exchange: int) -> None:
    """Let this process be killed when it exchanges numbers for the so manieth time."""
    reduced, made = Processes._reduced, 0

    def counted(processes: Processes, *arguments: Any) -> list[float]:
        nonlocal made
        made += 1
        return die() if made == exchange else reduced(processes, *arguments)

    Processes._reduced = counted  # type: ignore[method-assign]


def main(root: str, shared: str, sharding: str, rank: str, exchange: str) -> None:
    """Train as one of two processes that the launcher started, as the command does."""
    if os.environ["RANK"] == rank:
        _end_at(int(exchange))
    processes = joined("cpu")
    with said_once(processes):
        run(recipe_of_two(Path(shared), Path(root), sharding), processes=processes)
        leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
