"""A piece of work, what may go wrong in it, and what has to be so afterwards."""

from __future__ import annotations

import random
import re
import shutil
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from tests.faults.children import Acknowledge, Act, Ended, in_child
from tests.faults.injector import KINDS, Fault

#: What a sentence must say of what to do.
_REMEDY = re.compile(
    r"\b([Ff]ree|[Ww]rite|[Ww]ait|[Rr]un|[Tt]rain|[Tt]ry|[Aa]dd|[Cc]heck|[Rr]aise|[Rr]emove|[Cc]ontinue|[Ss]et|[Rr]estore|"
    r"[Uu]se|[Ll]eave|[Gg]et|[Cc]hoose|[Mm]ount|[Gg]ive|[Nn]ame)\b"
)


@dataclass(frozen=True)
class Scenario:
    """A piece of work.

    Attributes:
        name: Its name in the table.
        folder: Where its cases are.
        act: The work, in a process in which something goes wrong.
        check: What has to be so afterwards, in a process in which nothing does; it is given how the first one ended
            and the directory of one in which nothing went wrong, and acknowledges what came of it, in words.
        begin: Makes what is there before; None for nothing.
        kinds: What may go wrong.
        call: What the work is called in a case's name.
    """

    name: str
    folder: Path
    act: Act
    check: Callable[..., None]
    begin: Callable[[Path], None] | None = None
    kinds: tuple[str, ...] = tuple(KINDS)
    call: str = ""

    def root(self, case: str) -> Path:
        """The directory of a case, as it is before the work."""
        folder = self.folder / case
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        root = folder / "root"
        if self.begin is not None:
            self.begin(root)
        return root


_locks: dict[Path, threading.Lock] = defaultdict(threading.Lock)


def undisturbed(scenario: Scenario) -> tuple[Path, tuple[str, ...]]:
    """The directory after the work if nothing goes wrong, and its points. Any number of threads may ask for it."""
    with _locks[scenario.folder]:
        return _undisturbed(scenario)


@cache
def _undisturbed(scenario: Scenario) -> tuple[Path, tuple[str, ...]]:
    root = scenario.root("whole")
    ended = in_child(scenario.act, root)
    assert ended.how == "done", ended.said
    return root, tuple(ended.points)


def faults(scenario: Scenario, kind: str, count: int, seed: int) -> Iterator[Fault]:
    """So many faults of a kind at different points, drawn with a seed; each point if there are no more."""
    total = len(undisturbed(scenario)[1])
    draw = random.Random(f"{seed} {scenario.call or scenario.name} {kind}")
    for point in sorted(draw.sample(range(1, total + 1), k=min(count, total))):
        yield Fault(kind, point)


def run_case(scenario: Scenario, fault: Fault) -> str:
    """Let something go wrong, and see what is there afterwards and whether the next command works.

    Returns:
        What came of it, in words.

    Raises:
        AssertionError: Something was lost, or isn't whole, or nobody said what to do.
    """
    whole, _ = undisturbed(scenario)
    root = scenario.root(str(fault))
    ended = in_child(scenario.act, root, fault)
    assert ended.how != "defect", ended.said
    if fault.kind in ("kill", "cut", "power"):
        assert ended.how == "killed", f"the point wasn't reached: {ended}"
    if ended.how == "refused":
        check_sentence(ended.said)
    outcome = checked(partial(scenario.check, whole=whole, ended=ended), root)
    shutil.rmtree(root.parent)
    return outcome


def checked(check: Act, root: Path) -> str:
    """What a check acknowledges, in a process of its own."""
    found = in_child(check, root)
    assert found.how == "done", found.said
    return "; ".join(map(str, found.acknowledged))


def check_sentence(said: str) -> None:
    """See that an error says where and what to do."""
    assert "/" in said and _REMEDY.search(said), said
    assert len(said) < 2000, said


def nothing(root: Path, acknowledge: Acknowledge, **_: Any) -> None:
    """A check that everything is well."""
    acknowledge("well")


__all__ = [
    "Ended",
    "Fault",
    "Scenario",
    "check_sentence",
    "checked",
    "faults",
    "nothing",
    "run_case",
    "undisturbed",
]
