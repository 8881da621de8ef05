"""What a machine does to a process: a full or read-only disk, memory that runs out, a clock that jumps."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import os
import random
import resource
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.faults.children import Acknowledge, in_child
from tests.faults.damage import damaged
from tests.faults.scenario import check_sentence, checked
from tests.faults.stores import change, found_in, sources_in
from tests.faults.trainings import check, check_same, recipe_of, train, whole_run
from tests.training.tiny_run import adapter_digest

from manytune.atomic import write_error
from manytune.errors import ManytuneError
from manytune.store import adapters as stored_adapters
from manytune.store.run_directory import RunDirectory
from manytune.store.verification import verify_adapter
from manytune.training import environment as environments
from manytune.training.run import run

MIB = 1 << 20
_READ_ONLY, _REMOUNT, _NEW_MOUNTS, _PRIVATE = 1, 32, 0x00020000, 0x44000
_libc = ctypes.CDLL(None, use_errno=True)


class NotPossibleError(Exception):
    """This process may not mount anything."""


def mount(target: Path, flags: int, options: str) -> None:
    """Mount a file system in memory, or change one.

    Raises:
        NotPossibleError: The system doesn't let this process.
    """
    if _libc.mount(b"tmpfs", str(target).encode(), b"tmpfs", flags, options.encode()):
        raise NotPossibleError(os.strerror(ctypes.get_errno()))


def own_mounts() -> None:
    """See to it that what this process mounts is seen by it alone, and goes with it."""
    if _libc.unshare(_NEW_MOUNTS) or _libc.mount(b"none", b"/", None, _PRIVATE, None):
        raise NotPossibleError(os.strerror(ctypes.get_errno()))


def fill_disk(root: Path, acknowledge: Acknowledge, *, shared: Path, seed: int, read_only: bool) -> None:
    """Train and add to a store on a small file system of its own; then with enough room, or writable."""
    try:
        own_mounts()
        root.mkdir()
        mount(root, 0, "size=8m")
    except NotPossibleError:
        acknowledge("not possible here: nothing may be mounted")
        return
    draw, refused, sources = random.Random(seed), 0, sources_in(shared)
    recipe = recipe_of(shared, "LoRA", root / "run")
    store = root / "store"
    if read_only:
        change(store, lambda _: None, sources=sources)
        mount(root, _REMOUNT | _READ_ONLY, "")
    else:
        (root / "ballast").write_bytes(b"x" * (8 * MIB - draw.randrange(4, 220) * 1024))
    works: tuple[Callable[[], object], ...] = (
        lambda: run(recipe, resume=RunDirectory(root / "run").begun),
        lambda: change(store, lambda _: None, sources=sources),
    )
    for work in works:
        try:
            work()
        except Exception as error:
            refused += 1
            check_sentence(_sentence(error))
    if read_only:
        mount(root, _REMOUNT, "size=8m")
        assert refused == len(works)
    else:
        (root / "ballast").unlink()
    if not RunDirectory(root / "run").finished:
        works[0]()
    shutil.rmtree(store, ignore_errors=True)
    works[1]()
    check_same(RunDirectory(root / "run"), RunDirectory(shared / "whole"))
    assert found_in(store, sources).names == {"second": 1, "production": 1, "first": 2}
    acknowledge("refused with a sentence, then to the same bits" if refused else "there was room")


def _sentence(error: Exception) -> str:
    if isinstance(error, ManytuneError):
        return str(error)
    found = write_error(error)
    assert found is not None, repr(error)
    return str(found)


def run_on_a_small_disk(shared: Path, seed: int, *, read_only: bool = False) -> str:
    """See `fill_disk`."""
    whole_run(shared)
    root = shared / "cases" / f"disk-{read_only}-{seed}" / "root"
    root.parent.mkdir(parents=True)
    return checked(partial(fill_disk, shared=shared, seed=seed, read_only=read_only), root)


# -- memory


def limit_memory(more: int) -> None:
    """Let this process take so many bytes of addresses more than it has."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + more, resource.RLIM_INFINITY))


def run_short_of_memory(shared: Path, seed: int) -> str:
    """A training takes more memory than there is: it says so or is ended, and the next command goes on."""
    whole, draw = whole_run(shared), random.Random(f"memory {seed}")
    root = shared / "cases" / f"memory-{seed}" / "root"
    root.parent.mkdir(parents=True)
    act = partial(train, shared=shared, method="LoRA")
    ended = in_child(act, root, None, partial(limit_memory, draw.randrange(160) * MIB // 2))
    assert ended.how != "defect", ended.said
    if ended.how == "refused":
        check_sentence(f"/{ended.said}")
    checked(partial(check, shared=shared, method="LoRA", whole=whole, ended=ended), root)
    shutil.rmtree(root.parent)
    words = {
        "refused": "refused with a sentence",
        "killed": "ended by the system",
        "done": "there was enough",
    }
    return f"{words[ended.how]}, then to the same bits"


# -- clocks


class JumpingTime:
    """`time.time` that goes forwards or backwards by years at calls that are drawn."""

    def __init__(self, seed: int) -> None:
        self._draw, self._real, self.offset = random.Random(seed), time.time, 0.0

    def __call__(self) -> float:
        """What the clock shows."""
        if self._draw.random() < 0.3:
            self.offset = self._draw.choice([-1, 1]) * self._draw.choice([60.0, 7200.0, 1e8])
        return self._real() + self.offset

    def dates(self) -> type[datetime.datetime]:
        """`datetime` by this clock."""
        clock = self

        class Dates(datetime.datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return datetime.datetime.fromtimestamp(clock(), tz)

        return Dates


def jump(root: Path, acknowledge: Acknowledge, *, shared: Path, seed: int) -> None:
    """Train, be interrupted, go on, and change a store, while the clock jumps."""
    clock = JumpingTime(seed)
    time.time = clock
    dates = clock.dates()
    stored_adapters.datetime = environments.datetime = dates  # type: ignore[attr-defined, misc]
    recipe = recipe_of(shared, "LoRA", root / "run")

    def stop(event: Any) -> None:
        if event.step == 3:
            raise KeyboardInterrupt

    try:
        run(recipe, report=stop)
    except KeyboardInterrupt:
        os.utime(root / "run", (clock(), clock()))
    assert run(recipe, resume=True).resumed_from == 2
    check_same(RunDirectory(root / "run"), RunDirectory(shared / "whole"))
    change(root / "store", lambda _: None, sources=sources_in(shared))
    assert found_in(root / "store", sources_in(shared)).names == {"second": 1, "production": 1, "first": 2}
    acknowledge("no result depends on the clock")


def run_with_a_jumping_clock(shared: Path, seed: int) -> str:
    """See `jump`."""
    whole_run(shared)
    root = shared / "cases" / f"clock-{seed}" / "root"
    root.mkdir(parents=True)
    return checked(partial(jump, shared=shared, seed=seed), root)


# -- a run whose files are damaged


def damage_run(root: Path, acknowledge: Acknowledge, *, shared: Path, seed: int) -> None:
    """Damage a file of a run: the next command ends with the same bits, or says what to do."""
    recipe, draw = recipe_of(shared, "LoRA", root), random.Random(seed)

    def stop(event: Any) -> None:
        if event.step == 3:
            raise KeyboardInterrupt

    is_finished = draw.random() < 0.3
    with contextlib.suppress(KeyboardInterrupt):
        run(recipe, report=None if is_finished else stop)
    damaged(root, seed)
    outcome = "resumed to the same bits"
    try:
        if is_finished:
            _read_finished(root)
            outcome = "noticed, or without effect"
        else:
            run(recipe, resume=True)
            check_same_adapter(root, shared)
    except ManytuneError as error:
        check_sentence(str(error))
        outcome = "refused with the file's name, then trained again"
        try:
            run(recipe, overwrite=True)
        except ManytuneError as refused:
            check_sentence(str(refused))
            shutil.rmtree(root)
            run(recipe)
        check_same_adapter(root, shared)
    acknowledge(outcome)


def _read_finished(root: Path) -> None:
    directory = RunDirectory(root)
    directory.reports()
    directory.read_scores()
    verify_adapter(directory.adapter)


def check_same_adapter(root: Path, shared: Path) -> None:
    """See that the adapter is that of a training that nothing disturbed."""
    assert adapter_digest(root / "adapter") == adapter_digest(shared / "whole" / "adapter")


def run_with_damage(shared: Path, seed: int) -> str:
    """See `damage_run`."""
    whole_run(shared)
    root = shared / "cases" / f"damage-{seed}" / "root"
    root.parent.mkdir(parents=True)
    outcome = checked(partial(damage_run, shared=shared, seed=seed), root)
    shutil.rmtree(root.parent)
    return outcome
