"""Two processes at the same place: two trainers in one run directory, two servers that follow one folder."""

from __future__ import annotations

import os
import random
import shutil
import time
from functools import partial
from pathlib import Path

from tests.faults.children import Acknowledge, Child
from tests.faults.injector import Fault
from tests.faults.scenario import check_sentence, checked
from tests.faults.stores import sources_in
from tests.faults.trainings import check_same, recipe_of, train, whole_run

from manytune.store.base import load_base
from manytune.store.folder import FolderStore
from manytune.store.resident import read_resident
from manytune.store.run_directory import RunDirectory
from manytune.training.run import run

# -- two trainers


def run_two_trainers(folder: Path, seed: int) -> str:
    """Two trainings begin in one directory, and one of them may be killed: the other says why it doesn't run."""
    draw, root = random.Random(f"trainers {seed}"), folder / "cases" / f"trainers-{seed}" / "root"
    root.parent.mkdir(parents=True)
    whole, act = whole_run(folder), partial(train, shared=folder, method="LoRA")
    fault = Fault("kill", draw.randint(1, 120)) if draw.random() < 0.5 else None
    first, second = Child(act, root, fault), Child(act, root)
    ended = [first.ended(), second.ended()]
    for one in ended:
        assert one.how != "defect", one.said
        if one.how == "refused":
            check_sentence(one.said)
    done = sum(one.how == "done" for one in ended)
    assert done == 1 or (done == 0 and fault is not None), ended
    outcome = checked(partial(_check_trained, folder=folder, whole=whole), root)
    shutil.rmtree(root.parent)
    return outcome


def _check_trained(root: Path, acknowledge: Acknowledge, *, folder: Path, whole: Path) -> None:
    directory = RunDirectory(root)
    if not directory.finished:
        run(recipe_of(folder, "LoRA", root), resume=directory.begun)
    check_same(directory, RunDirectory(whole))
    acknowledge("one trained to the same bits, the other said why not")


# -- two servers, whose copies of a folder's adapters are in one cache


def follow(root: Path, acknowledge: Acknowledge, *, shared: Path, adapters: Path) -> None:
    """Follow a folder, as a server does that has just started."""
    os.environ["MANYTUNE_CACHE"] = str(root)
    store = FolderStore(adapters, load_base(str(shared / "base")))
    for _ in range(2):
        store.refresh()
    acknowledge(store.names())


def run_two_servers(folder: Path, seed: int) -> str:
    """Two servers begin to follow a folder, and one of them is killed: the other and the next one serve all of it."""
    draw, case = random.Random(f"servers {seed}"), folder / "cases" / f"servers-{seed}"
    adapters, root = case / "adapters", case / "root"
    root.mkdir(parents=True)
    for name in range(2):
        _place(sources_in(folder) / str(name), adapters / f"n{name}")
    act = partial(follow, shared=folder, adapters=adapters)
    fault = Fault(draw.choice(["kill", "cut", "io"]), draw.randint(1, 75))
    disturbed, other = Child(act, root, fault), Child(act, root)
    ends = [disturbed.ended(), other.ended()]
    assert ends[1].how == "done" and set(ends[1].acknowledged[0]) == {"n0", "n1"}, ends[1].said
    assert ends[0].how != "defect", ends[0].said
    shutil.rmtree(adapters / "n1")
    _place(sources_in(folder) / "2", adapters / "n2")
    outcome = checked(partial(_check_followed, shared=folder, adapters=adapters), root)
    shutil.rmtree(case)
    return outcome


def _check_followed(root: Path, acknowledge: Acknowledge, *, shared: Path, adapters: Path) -> None:
    follow(root, lambda _: None, shared=shared, adapters=adapters)
    store = FolderStore(adapters, load_base(str(shared / "base")))
    assert set(store.names()) == {"n0", "n2"}
    for name, source in (("n0", "0"), ("n2", "2")):
        assert read_resident(store.path(name)).digest == read_resident(shared / "sources" / source).digest
    assert list((store.root / "staging").iterdir()) == []
    acknowledge("the other and the next server have the whole folder")


def _place(source: Path, target: Path) -> None:
    shutil.copytree(source, target)
    for path in target.iterdir():
        os.utime(path, (time.time() - 60,) * 2)  # as if nobody had written for a while
