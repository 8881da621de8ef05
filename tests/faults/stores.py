"""A store that is filled, changed and emptied: what was acknowledged is there, and all that is there is whole."""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path

from tests.faults.children import Acknowledge, Child, Ended
from tests.faults.damage import damaged
from tests.faults.injector import Fault
from tests.faults.scenario import Scenario, check_sentence, checked
from tests.store.adapters_made import make_adapter
from tests.store.tiny import save_tiny_base

from manytune.errors import StoreError, UnknownAdapterError
from manytune.store.base import load_base
from manytune.store.resident import read_resident
from manytune.store.store import AdapterStore

SOURCES = 3
making = threading.Lock()  # what several cases have in common is made once


@dataclass(frozen=True)
class Change:
    """One thing that a writer does.

    Attributes:
        what: Which method of the store.
        name: The adapter's name.
        source: Which adapter is added.
        other: A tag, a further name, or a score.
    """

    what: str
    name: str
    source: int = 0
    other: str = ""

    def make(self, store: AdapterStore, sources: Path) -> None:
        """Change a store."""
        match self.what:
            case "add":
                tags = [self.other] if self.other else []
                store.add(sources / str(self.source), name=self.name, move=True, tags=tags)
            case "alias":
                store.alias(self.name, self.other, move=True)
            case "unalias":
                store.unalias(self.name)
            case "tag":
                store.tag(self.name, self.other)
            case "untag":
                store.untag(self.name, self.other)
            case "scores":
                store.add_scores(self.name, {self.other: 0.5})
            case "remove":
                store.remove(self.name)


#: All that a writer does: adding, promoting, tagging, scoring, removing.
CHANGES = (
    Change("add", "first", 0, "t"),
    Change("add", "second", 1),
    Change("alias", "first", other="production"),
    Change("alias", "second", other="production"),
    Change("scores", "second", other="rouge1"),
    Change("untag", "first", other="t"),
    Change("tag", "first", other="u"),
    Change("alias", "second", other="gone"),
    Change("unalias", "gone"),
    Change("remove", "first"),
    Change("add", "first", 2, "t"),
)


@dataclass(frozen=True)
class State:
    """What a store holds, by numbers of sources: a model of it, without files.

    Attributes:
        names: Which adapter each name means.
        objects: The adapters.
        tags: Tags of adapters.
        scores: Scores of adapters.
    """

    names: dict[str, int] = field(default_factory=dict)
    objects: frozenset[int] = frozenset()
    tags: frozenset[tuple[int, str]] = frozenset()
    scores: frozenset[tuple[int, str]] = frozenset()

    def after(self, change: Change) -> State:
        """What it holds after a change."""
        names, own = dict(self.names), self.names.get(change.name, -1)
        match change.what:
            case "add":
                tags = self.tags | ({(change.source, change.other)} if change.other else set())
                names[change.name] = change.source
                return replace(self, names=names, objects=self.objects | {change.source}, tags=tags)
            case "alias":
                return replace(self, names={**names, change.other: own})
            case "unalias":
                return replace(self, names={one: of for one, of in names.items() if one != change.name})
            case "tag":
                return replace(self, tags=self.tags | {(own, change.other)})
            case "untag":
                return replace(self, tags=self.tags - {(own, change.other)})
            case "scores":
                return replace(self, scores=self.scores | {(own, change.other)})
        return State(
            {one: of for one, of in names.items() if of != own},
            self.objects - {own},
            frozenset(pair for pair in self.tags if pair[0] != own),
            frozenset(pair for pair in self.scores if pair[0] != own),
        )


@cache
def sources_in(shared: Path) -> Path:
    """The adapters that are added, in directories that are numbered; made once, with their base next to them."""
    sources = shared / "sources"
    with making:
        if not sources.is_dir():
            base = load_base(str(save_tiny_base(shared / "base")))
            for seed in range(SOURCES):
                make_adapter(shared / "unfinished" / str(seed), base, seed=seed)
            (shared / "unfinished").rename(sources)
    return sources


def numbers(sources: Path) -> dict[str, int]:
    """Which source has a digest."""
    return {read_resident(sources / str(seed)).digest: seed for seed in range(SOURCES)}


def found_in(root: Path, sources: Path) -> State:
    """What a store holds; every adapter in it is read and compared with its hashes."""
    found = state_of(AdapterStore(root), sources) if root.is_dir() else State()
    on_disk = {path.name for path in (root / "names").glob("*")}
    assert on_disk == set(found.names), f"a name without its adapter: {on_disk} {found.names}"
    return found


def state_of(store: AdapterStore, sources: Path) -> State:
    """The same, without looking for what the store doesn't know of."""
    number, entries = numbers(sources), store.entries()
    for entry in entries:
        assert read_resident(store.fetch(entry.digest)).digest == entry.digest
    return State(
        {name: number[entry.digest] for entry in entries for name in entry.names},
        frozenset(number[entry.digest] for entry in entries),
        frozenset((number[entry.digest], tag) for entry in entries for tag in entry.tags),
        frozenset(
            (number[entry.digest], score)
            for entry in entries
            for score in entry.manifest.scores
            if score != "validation_loss"
        ),
    )


def states_after_changes() -> list[State]:
    """What a store holds before the changes, and after each of them."""
    states = [State()]
    for one in CHANGES:
        states.append(states[-1].after(one))
    return states


def is_between(found: State, before: State, after: State) -> bool:
    """Whether each name, tag, score and adapter is as it was before a change, or as it is after it."""
    names = set(before.names) | set(after.names) | set(found.names)
    return all(
        found.names.get(name) in (before.names.get(name), after.names.get(name)) for name in names
    ) and all(
        old & new <= there <= old | new
        for there, old, new in (
            (found.objects, before.objects, after.objects),
            (found.tags, before.tags, after.tags),
            (found.scores, before.scores, after.scores),
        )
    )


def change(
    root: Path, acknowledge: Acknowledge, *, sources: Path, changes: tuple[Change, ...] = CHANGES
) -> None:
    """Make the changes, and say of each that it is made."""
    store = AdapterStore(root)
    for number, one in enumerate(changes):
        one.make(store, sources)
        acknowledge(number)


def check(root: Path, acknowledge: Acknowledge, *, sources: Path, whole: Path, ended: Ended) -> None:
    """What was done is there, what was being done is so or so, and the next writer goes on to the same store."""
    done, states = len(ended.acknowledged), states_after_changes()
    assert ended.acknowledged == list(range(done))
    expected = found_in(whole, sources)
    assert expected == states[-1]
    found = found_in(root, sources)
    assert is_between(found, states[done], states[min(done + 1, len(CHANGES))]), (done, found, states[done])
    store = AdapterStore(root)
    for one in CHANGES[done:]:
        try:
            one.make(store, sources)
        except UnknownAdapterError:
            # It was being taken away, and its name has gone already; its adapter goes by its digest.
            assert one == CHANGES[done] and one.what in ("remove", "unalias")
            left = states[done].names[one.name] if one.what == "remove" else None
            for digest, number in numbers(sources).items():
                if number == left and digest in store:
                    store.remove(digest)
    assert found_in(root, sources) == expected
    store.add(sources / "0", name="another")
    assert list((root / "staging").iterdir()) == []
    acknowledge("as acknowledged, and the next writer went on")


def writing(folder: Path) -> Scenario:
    """One writer to a store that isn't there before."""
    sources = sources_in(folder)
    return Scenario(
        "a store's add, promotion, tags, scores and remove",
        folder / "cases" / "store",
        partial(change, sources=sources),
        partial(check, sources=sources),
        call="store",
    )


# -- two writers


def write_own(root: Path, acknowledge: Acknowledge, *, sources: Path, writer: int, seed: int) -> None:
    """Give names of one's own, and one that both writers want, to adapters that both add."""
    draw, store = random.Random(f"{seed} {writer}"), AdapterStore(root)
    for number in range(12):
        name = draw.choice([f"own-{writer}", "shared"])
        source = draw.randrange(SOURCES)
        store.add(sources / str(source), name=name, move=True)
        acknowledge((name, source))
        if number % 4 == 3:
            store.alias(name, f"also-{writer}", move=True)
            acknowledge((f"also-{writer}", None))


def run_two_writers(folder: Path, seed: int) -> str:
    """Two processes change one store, and one of them is killed at a point; nothing of the other's is lost."""
    sources, root = sources_in(folder), folder / "cases" / f"writers-{seed}" / "root"
    root.parent.mkdir(parents=True)
    draw = random.Random(f"writers {seed}")
    fault = Fault(draw.choice(["kill", "cut"]), draw.randint(1, 150))
    acts = [partial(write_own, sources=sources, writer=writer, seed=seed) for writer in range(2)]
    children = [Child(acts[0], root, fault), Child(acts[1], root)]
    killed, whole = (child.ended() for child in children)
    assert whole.how == "done" and killed.how in ("killed", "done"), (whole, killed)
    told = [killed.acknowledged, whole.acknowledged]
    outcome = checked(partial(_check_two, sources=sources, acknowledged=told), root)
    shutil.rmtree(root.parent)
    return outcome


def _check_two(
    root: Path, acknowledge: Acknowledge, *, sources: Path, acknowledged: list[list[tuple[str, int | None]]]
) -> None:
    found = found_in(root, sources)
    last = [{name: source for name, source in one if source is not None} for one in acknowledged]
    # The last thing that the killed one did may be there without its having been acknowledged.
    assert found.names["own-1"] == last[1]["own-1"]
    assert "shared" not in last[1] or found.names["shared"] in range(SOURCES)
    if "own-0" in last[0]:
        assert "own-0" in found.names
    store = AdapterStore(root)
    store.add(sources / "1", name="own-0", move=True)
    assert list((root / "staging").iterdir()) == []
    acknowledge("both writers' names are as acknowledged")


# -- files that are damaged


def damage_and_mend(root: Path, acknowledge: Acknowledge, *, sources: Path, seed: int) -> None:
    """Damage a file of a store: nothing wrong is read, the others are, and adding the adapter again mends it."""
    change(root, lambda _: None, sources=sources)
    before = found_in(root, sources)
    file = damaged(root, seed, lambda path: ".lock" not in path.name and path.parent.name not in ("t", "u"))
    number = numbers(sources)
    store = _opened(root, acknowledge)
    if store is None:
        return
    problems: dict[str, str] = {}
    for digest, names in (
        (entry.digest, entry.names) for entry in store.entries(unreadable=_noted(problems))
    ):
        _read(store, digest, problems)
        for name in names:
            assert before.names[name] == number[digest], f"{name} means another adapter"
    for said in problems.values():
        check_sentence(said)
    for name, source in before.names.items():
        store.add(sources / str(source), name=name, move=True)
    after = found_in(root, sources)
    assert (after.names, after.objects) == (before.names, before.objects), file
    acknowledge(f"{'noticed' if problems else 'without effect'}, mended by adding again")


def _opened(root: Path, acknowledge: Acknowledge) -> AdapterStore | None:
    try:
        return AdapterStore(root)
    except StoreError as error:
        check_sentence(str(error))
        acknowledge("refused with the file's name")
        return None


def _noted(problems: dict[str, str]) -> Callable[[str, StoreError], None]:
    return lambda digest, error: problems.__setitem__(digest, str(error))


def _read(store: AdapterStore, digest: str, problems: dict[str, str]) -> None:
    try:
        assert read_resident(store.path(digest)).digest == digest
    except StoreError as error:
        problems[digest] = str(error)
