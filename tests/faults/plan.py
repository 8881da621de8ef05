"""Which faults are injected, how often, and under what names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from tests.faults import machines, pairs, partition, records, rivals, shared_storage, stores, trainings, wire
from tests.faults.children import in_child
from tests.faults.injector import KINDS, Fault
from tests.faults.scenario import Scenario, checked, faults, run_case

#: How many faults of each kind at points of one training, of a training over a former run, ...
TRAINING = {"kill": 2, "cut": 2, "power": 2, "full": 1, "read-only": 1, "io": 1}
REPLACING = {"kill": 4, "cut": 4, "power": 4, "full": 2, "read-only": 1, "io": 1}
STORE = {"kill": 40, "cut": 40, "power": 40, "full": 25, "read-only": 15, "io": 20}
SMALL = dict.fromkeys(KINDS, 8)
COMPARING = {"kill": 3, "cut": 3, "power": 3, "full": 1, "read-only": 1, "io": 1}
PARTITION = dict.fromkeys(partition.KINDS, 15)
SHARED_WRITER = dict.fromkeys(wire.MOMENTS, 12)
SHARED_PARTITION = {"refused": 8, "half": 8, "silent": 4}


@dataclass(frozen=True)
class Group:
    """Faults of one kind in one piece of work.

    Attributes:
        row: What was going on, and what happened, in the table.
        name: The beginning of its cases' names.
        cases: Their names after the slash; may have to measure the work first.
        run: Runs one of them; what came of it, in words.
    """

    row: tuple[str, str]
    name: str
    cases: Callable[[], list[str]]
    run: Callable[[str], str]


def groups(folder: Path, seed: int, scale: float = 1.0) -> list[Group]:
    """All of them, in the order of the table.

    Args:
        folder: Where they work.
        seed: Which points and files are drawn.
        scale: How many times as many as usual.
    """

    def times(count: int) -> int:
        return max(1, round(count * scale))

    def at_points(make: Callable[[], Scenario], what: str, name: str, counts: dict[str, int]) -> list[Group]:
        make = cache(make)
        return [
            Group(
                (what, KINDS[kind]),
                f"{name} {kind}",
                lambda kind=kind, count=count: [  # type: ignore[misc]
                    str(one.point) for one in faults(make(), kind, times(count), seed)
                ],
                lambda case, kind=kind: run_case(make(), Fault(kind, int(case))),  # type: ignore[misc]
            )
            for kind, count in counts.items()
        ]

    def seeded(what: str, fault: str, name: str, count: int, run: Callable[[Path, int], str]) -> Group:
        numbers = [str(1000 * seed + number) for number in range(times(count))]

        def cases() -> list[str]:
            stores.sources_in(folder / "common")
            trainings.whole_run(folder / "common")
            return numbers

        return Group((what, fault), name, cases, lambda case: run(folder / "common", int(case)))

    found: list[Group] = []
    for method in trainings.METHODS:
        make = partial(trainings.training, folder / "trainings", method)
        found += at_points(make, "training, 8 methods", f"training {method}", TRAINING)
    found += at_points(
        partial(trainings.replacing, folder), "training with --overwrite", "overwrite", REPLACING
    )
    trainers = "SIGKILL to one of them, or nothing"
    killed = "SIGKILL to the first, or a power cut"
    found += [
        seeded("training by two processes", killed, "two processes", 12, pairs.run_pair),
        seeded(
            "training by two processes, sharded or not",
            "SIGKILL to either of them",
            "either process",
            12,
            pairs.run_launched,
        ),
        seeded("two trainings in one directory", trainers, "two trainers", 6, rivals.run_two_trainers),
        seeded(
            "training, then adding to a store",
            "a small disk that fills up",
            "disk",
            8,
            machines.run_on_a_small_disk,
        ),
        seeded(
            "training, then adding to a store",
            "a disk that is remounted read-only",
            "read-only disk",
            2,
            partial(machines.run_on_a_small_disk, read_only=True),
        ),
        seeded("training", "0 to 80 MiB of memory are left", "memory", 8, machines.run_short_of_memory),
        seeded(
            "training, resuming, a store's changes",
            "the clock jumps by up to 3 years",
            "clock",
            4,
            machines.run_with_a_jumping_clock,
        ),
        seeded(
            "a run, interrupted or finished", "a damaged file", "damaged run", 12, machines.run_with_damage
        ),
    ]
    writing = partial(stores.writing, folder / "common")
    found += at_points(writing, "a store's add, promotion, tags, scores, remove", "store", STORE)
    found += [
        seeded(
            "two writers to one store", "SIGKILL to one of them", "two writers", 20, stores.run_two_writers
        ),
        seeded("a store", "a damaged file", "damaged store", 30, _damaged_store),
        seeded(
            "two servers that follow one folder",
            "SIGKILL to one of them, or its disk's error",
            "two servers",
            12,
            rivals.run_two_servers,
        ),
    ]
    found += [
        _partition(
            ("a server and its store", partition.KINDS[kind]),
            f"partition {kind}",
            partial(partition.partitioned, folder / "partition", kind),
            times(count),
            seed,
        )
        for kind, count in PARTITION.items()
    ]
    found += [
        Group(
            ("a writer to a store on S3", wire.MOMENTS[kind]),
            f"S3 writer {kind}",
            partial(shared_storage.writers_requests, folder / "common", kind, times(count), seed),
            lambda case, kind=kind: shared_storage.run_writer(folder / "common", kind, int(case)),  # type: ignore[misc]
        )
        for kind, count in SHARED_WRITER.items()
    ]
    found += [
        _partition(
            ("a server and its store on S3", wire.OUTAGES[kind]),
            f"S3 {kind}",
            partial(shared_storage.partitioned, folder / "common", kind),
            times(count),
            seed,
        )
        for kind, count in SHARED_PARTITION.items()
    ]
    caching, answering = partial(records.caching, folder), partial(records.keeping_answers, folder)
    found += at_points(caching, "a cache of encoded rows that evicts", "cache", SMALL)
    found.append(
        seeded(
            "a cache of encoded rows",
            "a damaged file",
            "damaged cache",
            10,
            _of("cache", records.damage_cache),
        )
    )
    found += at_points(partial(records.comparing, folder), "an experiment", "compare", COMPARING)
    found.append(seeded("an experiment", "a damaged file", "damaged experiment", 4, _damaged_experiment))
    found += at_points(answering, "answers of another server", "answers", SMALL)
    damaged_answers = _of("answers", records.damage_answers, begin=Path.mkdir)
    found.append(seeded("answers of another server", "a damaged file", "damaged answers", 6, damaged_answers))
    return found


def _of(
    name: str, act: Callable[..., None], begin: Callable[[Path], None] | None = None
) -> Callable[[Path, int], str]:
    """A case of an act that does and checks everything itself."""

    def run(shared: Path, seed: int) -> str:
        root = shared / "cases" / f"damaged-{name}-{seed}" / "root"
        root.parent.mkdir(parents=True)
        if begin is not None:
            begin(root)
        return checked(partial(act, seed=seed), root)

    return run


def _damaged_store(shared: Path, seed: int) -> str:
    return _of("store", partial(stores.damage_and_mend, sources=stores.sources_in(shared)))(shared, seed)


def _damaged_experiment(shared: Path, seed: int) -> str:
    records.prepare(shared / "experiment")
    return _of("experiment", partial(records.damage_experiment, shared=shared / "experiment"))(shared, seed)


def _partition(
    row: tuple[str, str],
    name: str,
    make: Callable[[int], tuple[Path, Callable[..., None]]],
    count: int,
    seed: int,
) -> Group:
    """A server that is cut off at some of its reads.

    Args:
        row: See `Group`.
        name: See `Group`.
        make: Where the case is in which it is cut off at a read, and its work.
        count: At how many.
        seed: Which.
    """

    @cache
    def reads() -> int:
        root, act = make(0)
        ended = in_child(act, root)
        assert ended.how == "done", ended.said
        return int(ended.acknowledged[0])

    def cases() -> list[str]:
        step = max(1, reads() // count)
        return [str(1 + (seed + number * step) % reads()) for number in range(min(count, reads()))]

    def run(case: str) -> str:
        root, act = make(int(case))
        checked(act, root)
        return "what is in memory answers, the rest gets 503, then all as promoted"

    return Group(row, name, cases, run)
