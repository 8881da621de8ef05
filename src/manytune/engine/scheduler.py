"""Which sequences run in a step: admission, reading prompts in pieces, fairness, priorities. No tensors.

Each step takes one token further every sequence that decodes, and reads up to `prefill_chunk` tokens of prompts. A
sequence is admitted when a row for all that it may grow to fits into the budget beside those that run: nothing
that was begun has to be given up. The next to be admitted is the one with the highest priority, which rises by one for
each `AGING` steps of waiting; then one of the tenant that has had the fewest tokens; of this tenant's, one of the
adapter that has had the fewest; then the oldest. If it doesn't fit, nobody overtakes it. So each request's turn comes.
One thing goes before: a request whose prompt begins with what another is reading just now waits until it can share it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from manytune.engine.kv_cache import rounded

#: Steps of waiting that are worth one unit of priority.
AGING = 64

_Name = TypeVar("_Name")


@dataclass(frozen=True)
class Job:
    """What the scheduler knows of a request.

    Attributes:
        id: The request's.
        prompt: Tokens to read before the first is chosen, virtual ones included; at least 1.
        room: Tokens that it may come to.
        tenant: Whom it is for.
        adapter: A name for the weights that it needs; None for the base's.
        priority: Higher goes first.
        beginning: Keys of the blocks that the prompt begins with, if what was read of them can be shared: equal keys
            mean an equal beginning up to there.
    """

    id: str
    prompt: int
    room: int
    tenant: str = "default"
    adapter: str | None = None
    priority: int = 0
    beginning: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Piece:
    """A stretch of a prompt that a step reads: `count` tokens from position `start`."""

    id: str
    start: int
    count: int


@dataclass(frozen=True)
class Plan:
    """One step.

    Attributes:
        decode: Those that get one token further.
        pieces: What is read of prompts, in the order of admission.
        ready: Those whose prompts are read to the end in this step.
    """

    decode: tuple[str, ...]
    pieces: tuple[Piece, ...]
    ready: tuple[str, ...]


@dataclass
class _Waiting:
    job: Job
    order: int
    since: int


@dataclass
class _Running:
    job: Job
    read: int = 0
    shared: int = 0  # blocks of its beginning that came from elsewhere


class Scheduler:
    """The book of what waits and what runs.

    Args:
        kv_budget_tokens: Tokens that the cache has room for: rows times the width of the widest.
        max_batch: Sequences that may run at once.
        prefill_chunk: Tokens of prompts read in one step, at most.
        max_adapters: Different adapters that may run at once.
    """

    def __init__(
        self, *, kv_budget_tokens: int, max_batch: int, prefill_chunk: int, max_adapters: int
    ) -> None:
        self.kv_budget_tokens = kv_budget_tokens
        self.max_batch = max_batch
        self.prefill_chunk = prefill_chunk
        self.max_adapters = max_adapters
        self._waiting: dict[str, _Waiting] = {}
        self._running: dict[str, _Running] = {}
        self._tenants: dict[str, int] = {}  # tokens that each has had
        self._adapters: dict[tuple[str, str | None], int] = {}
        self._added = 0
        self._steps = 0

    # -- what there is

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """How many sequences run."""
        return len(self._running)

    def holds(self, job: Job) -> bool:
        """Whether a request could run, were it alone."""
        return rounded(job.room) <= self.kv_budget_tokens

    # -- changes

    def add(self, job: Job) -> None:
        """Let a request wait for its turn."""
        assert job.id not in self._waiting and job.id not in self._running, f"{job.id} is there already"
        assert self.holds(job) and 1 <= job.prompt <= job.room
        # Whoever was away has saved no claim: counting begins where the least served of those present is.
        self._join(self._tenants, job.tenant, {entry.tenant for entry in self._jobs()})
        mine = {(entry.tenant, entry.adapter) for entry in self._jobs() if entry.tenant == job.tenant}
        self._join(self._adapters, (job.tenant, job.adapter), mine)
        self._waiting[job.id] = _Waiting(job, self._added, self._steps)
        self._added += 1

    def remove(self, request_id: str) -> None:
        """Forget a request that has ended or was cancelled, waiting or running."""
        if self._waiting.pop(request_id, None) is None:
            del self._running[request_id]
        present = {job.tenant for job in self._jobs()}
        if len(self._tenants) > 2 * len(present) + 64:
            self._tenants = {name: had for name, had in self._tenants.items() if name in present}
            self._adapters = {key: had for key, had in self._adapters.items() if key[0] in present}

    def admit(self) -> list[str]:
        """Let requests begin, as many as fit."""
        admitted = []
        rooms = [entry.job.room for entry in self._running.values()]
        adapters = {entry.job.adapter for entry in self._running.values()} - {None}
        claimed: dict[str, int] = {}  # tokens that those just admitted will have: the next turn is another's
        while len(self._running) < self.max_batch:
            candidates = self._candidates()
            if not candidates:
                break
            job = min(candidates, key=lambda entry: self._turn(entry, claimed)).job
            needed = adapters | ({job.adapter} - {None})
            width = rounded(max([*rooms, job.room]))
            if (len(rooms) + 1) * width > self.kv_budget_tokens or len(needed) > self.max_adapters:
                break
            del self._waiting[job.id]
            self._running[job.id] = _Running(job)
            rooms.append(job.room)
            adapters = needed
            claimed[job.tenant] = claimed.get(job.tenant, 0) + job.room
            admitted.append(job.id)
        return admitted

    def skip(self, request_id: str, tokens: int, blocks: int) -> None:
        """Note that the first tokens of a prompt needn't be read; its last one always is.

        Args:
            request_id: One that was just admitted.
            tokens: How many.
            blocks: How many blocks of its beginning they cover.
        """
        entry = self._running[request_id]
        assert entry.read == 0 and 0 <= tokens < entry.job.prompt
        entry.read, entry.shared = tokens, blocks

    def plan(self) -> Plan:
        """The next step. It is taken as done: what it reads counts as read."""
        self._steps += 1
        decode, pieces, ready = [], [], []
        left = self.prefill_chunk
        for name, entry in self._running.items():
            unread = entry.job.prompt - entry.read
            if not unread:
                decode.append(name)
                self._charge(entry.job, 1)
                continue
            count = min(unread, left)
            if not count:
                continue
            left -= count
            pieces.append(Piece(name, entry.read, count))
            entry.read += count
            self._charge(entry.job, count)
            if count == unread:
                ready.append(name)
        return Plan(tuple(decode), tuple(pieces), tuple(ready))

    def check_integrity(self) -> None:
        """Assert that the book is consistent and within its limits."""
        assert not self._waiting.keys() & self._running.keys()
        assert len(self._running) <= self.max_batch
        rooms = [entry.job.room for entry in self._running.values()]
        assert not rooms or len(rooms) * rounded(max(rooms)) <= self.kv_budget_tokens
        assert len({e.job.adapter for e in self._running.values()} - {None}) <= self.max_adapters
        assert all(0 <= entry.read <= entry.job.prompt for entry in self._running.values())
        assert all(
            job.tenant in self._tenants and (job.tenant, job.adapter) in self._adapters
            for job in self._jobs()
        )

    # -- parts

    def _jobs(self) -> Iterable[Job]:
        yield from (entry.job for entry in self._waiting.values())
        yield from (entry.job for entry in self._running.values())

    def _candidates(self) -> list[_Waiting]:
        """Those that may begin: not those whose beginning another is reading just now, and will have to share soon."""
        reading: dict[bytes, list[_Running]] = {}
        for entry in self._running.values():
            if entry.job.beginning and entry.read < entry.job.prompt:
                reading.setdefault(entry.job.beginning[0], []).append(entry)
        if not reading:
            return list(self._waiting.values())
        return [
            entry
            for entry in self._waiting.values()
            if not any(
                _common(entry.job.beginning, other.job.beginning) > other.shared
                for other in reading.get(entry.job.beginning[0] if entry.job.beginning else b"", ())
            )
        ]

    def _turn(self, entry: _Waiting, claimed: dict[str, int]) -> tuple[int, int, int, int]:
        job = entry.job
        priority = job.priority + (self._steps - entry.since) // AGING
        had = self._tenants[job.tenant] + claimed.get(job.tenant, 0)
        return -priority, had, self._adapters[job.tenant, job.adapter], entry.order

    def _charge(self, job: Job, tokens: int) -> None:
        self._tenants[job.tenant] += tokens
        self._adapters[job.tenant, job.adapter] += tokens

    @staticmethod
    def _join(counts: dict[_Name, int], name: _Name, present: set[_Name]) -> None:
        least = min((counts[other] for other in present), default=0)
        counts[name] = counts[name] if name in present else max(counts.get(name, 0), least)


def _common(one: tuple[bytes, ...], other: tuple[bytes, ...]) -> int:
    """How many keys two beginnings have in common. An equal key means that those before it are equal too."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[middle - 1] == other[middle - 1] else (low, middle - 1)
    return low
