"""Which requests run in a step: admission, chunked prefill, fairness, priorities. No tensors.

Each step generates one token for every decoding request, and reads up to `prefill_chunk` tokens of prompts. A request
is admitted when a row for its `max_tokens` fits into the budget together with those that run, so that no running
request ever has to be preempted. The next to be admitted is of the tenant with the highest priority: that of its most
important request, which rises by one for each `AGING` steps in which the tenant has waited and had none admitted. So
a tenant's own backlog makes it no more important. Among equals it is the tenant that has had the fewest tokens; of
its requests the one of the highest priority, which waiting raises too; then one of the adapter that has had the
fewest tokens; then the oldest. If it doesn't fit, no other request overtakes it, so no request starves. One
exception: a request whose prompt shares a prefix with a prompt in prefill waits until it can take it from the cache.

Prompts are read in the same spirit: those of the tenant that has had the fewest tokens first, else in the order of
admission. So a long prompt delays those of its own tenant only.

What an encoder reads of a request is read whole, and once for equal inputs, before the first of the decoder's tokens.
It takes as many tokens of the step, and the oldest is read even if it is longer than a step. Its keys and values are in
a cache of their own with the same budget.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from manytune.engine.kv_cache import row_width

#: Steps of waiting that are worth one unit of priority.
AGING = 64

_Name = TypeVar("_Name")


@dataclass(frozen=True)
class Job:
    """What the scheduler needs to know of a request.

    Attributes:
        id: The request's id.
        prompt_tokens: Tokens to read before the first is chosen, virtual ones included; at least 1.
        max_tokens: The largest number of tokens that it may have: virtual ones, prompt and answer.
        tenant: Whom it belongs to.
        adapter: Identifies the weights that it needs; None for the base's.
        priority: Higher goes first.
        prefix_keys: Keys of the prompt's blocks, if their keys and values can be shared: equal keys mean equal prefixes
            up to the end of that block.
        source_tokens: Tokens that an encoder reads first; 0 for none.
        source_key: Equal keys mean equal tokens for the encoder, read with the same weights.
    """

    id: str
    prompt_tokens: int
    max_tokens: int
    tenant: str = "default"
    adapter: str | None = None
    priority: int = 0
    prefix_keys: tuple[bytes, ...] = ()
    source_tokens: int = 0
    source_key: bytes = b""

    @property
    def widest(self) -> int:
        """Tokens in the longer of its rows: both caches have the same budget."""
        return max(self.max_tokens, self.source_tokens)


@dataclass(frozen=True)
class ScheduledChunk:
    """A chunk of a prompt that a step reads: `count` tokens from position `start`."""

    id: str
    start: int
    count: int


@dataclass(frozen=True)
class Plan:
    """One step.

    Attributes:
        decode: Ids of the requests that decode.
        chunks: Prompt chunks to read.
        ready: Ids of the requests whose prompts end in this step.
        encode: Ids of the requests whose encoder inputs are read first.
    """

    decode: tuple[str, ...]
    chunks: tuple[ScheduledChunk, ...]
    ready: tuple[str, ...]
    encode: tuple[str, ...] = ()


@dataclass
class _Waiting:
    job: Job
    order: int
    since: int


@dataclass
class _Running:
    job: Job
    read: int = 0
    shared_blocks: int = 0  # blocks of its prompt that came from the prefix cache
    is_encoded: bool = False  # whether nothing is left for an encoder to read


class Scheduler:
    """The waiting and the running requests.

    Args:
        kv_budget_tokens: Capacity of the KV cache in tokens: rows times the width of the widest. That of the encoder
            inputs has as much.
        max_batch: Requests that may run at once.
        prefill_chunk: Largest number of prompt tokens that one step reads.
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
        self._served: dict[str, int] = {}  # the step in which each last had a request admitted
        self._adapters: dict[tuple[str, str | None], int] = {}
        self._added = 0
        self._steps = 0

    # -- state

    @property
    def waiting(self) -> int:
        """Number of waiting requests."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Number of running requests."""
        return len(self._running)

    def fits(self, job: Job) -> bool:
        """Whether a request could run if it were the only one."""
        return row_width(job.widest) <= self.kv_budget_tokens

    # -- changes

    def add(self, job: Job) -> None:
        """Put a request into the queue."""
        assert job.id not in self._waiting and job.id not in self._running, f"{job.id} is there already"
        assert self.fits(job) and 1 <= job.prompt_tokens <= job.max_tokens
        # A tenant that was away gains no advantage from it: it starts level with the least served one present.
        self._join(self._tenants, job.tenant, {other.tenant for other in self._jobs()})
        mine = {(other.tenant, other.adapter) for other in self._jobs() if other.tenant == job.tenant}
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
            self._served = {name: step for name, step in self._served.items() if name in present}

    def admit(self) -> list[str]:
        """Move requests from the queue to the batch, as many as fit; returns their ids."""
        admitted = []
        lengths = [running.job.widest for running in self._running.values()]
        adapters = {running.job.adapter for running in self._running.values()} - {None}
        claimed: dict[str, int] = {}  # tokens that those just admitted will have, so that tenants take turns
        while len(self._running) < self.max_batch:
            candidates = self._candidates()
            if not candidates:
                break
            job = self._next_of(candidates, claimed).job
            needed = adapters | ({job.adapter} - {None})
            width = row_width(max([*lengths, job.widest]))
            if (len(lengths) + 1) * width > self.kv_budget_tokens or len(needed) > self.max_adapters:
                break
            del self._waiting[job.id]
            self._running[job.id] = _Running(job)
            self._served[job.tenant] = self._steps
            lengths.append(job.widest)
            adapters = needed
            claimed[job.tenant] = claimed.get(job.tenant, 0) + job.max_tokens + job.source_tokens
            admitted.append(job.id)
        return admitted

    def skip(self, request_id: str, tokens: int, blocks: int) -> None:
        """Note that the first tokens of a prompt come from the prefix cache; its last one never does.

        Args:
            request_id: A request that was just admitted.
            tokens: How many tokens.
            blocks: How many blocks of its prompt they cover.
        """
        running = self._running[request_id]
        assert running.read == 0 and 0 <= tokens < running.job.prompt_tokens
        running.read, running.shared_blocks = tokens, blocks

    def skip_source(self, request_id: str) -> None:
        """Note that an encoder has read the input of a request that was just admitted."""
        self._running[request_id].is_encoded = True

    def charge(self, request_id: str, tokens: int) -> None:
        """Note that a running request has had more tokens in a step than the one that it decodes: drafted ones."""
        self._charge(self._running[request_id].job, tokens)

    def plan(self) -> Plan:
        """The next step. Mutates: the tokens of its chunks count as read."""
        self._steps += 1
        decode, chunks, ready, encode = [], [], [], []
        left = self.prefill_chunk
        encoded: set[bytes] = set()
        reading = []
        for name, running in self._running.items():
            if running.read < running.job.prompt_tokens:
                reading.append((name, running))
                continue
            decode.append(name)
            self._charge(running.job, 1)
        reading.sort(
            key=lambda one: self._tenants[one[1].job.tenant]
        )  # stable: then in the order of admission
        for name, running in reading:
            job = running.job
            unread = job.prompt_tokens - running.read
            if job.source_tokens and not running.is_encoded:
                if job.source_key not in encoded:
                    if job.source_tokens > left < self.prefill_chunk:
                        continue  # it can't be divided, and waits until it is the first
                    encoded.add(job.source_key)
                    self._charge(job, job.source_tokens)
                    left = max(left - job.source_tokens, 1)  # what it is read for begins at once
                encode.append(name)
                running.is_encoded = True
            count = min(unread, left)
            if not count:
                continue
            left -= count
            chunks.append(ScheduledChunk(name, running.read, count))
            running.read += count
            self._charge(running.job, count)
            if count == unread:
                ready.append(name)
        return Plan(tuple(decode), tuple(chunks), tuple(ready), tuple(encode))

    def check_integrity(self) -> None:
        """Assert that the bookkeeping is consistent and within its limits."""
        assert not self._waiting.keys() & self._running.keys()
        running = self._running.values()
        assert len(running) <= self.max_batch
        widest = max((row_width(one.job.widest) for one in running), default=0)
        assert len(running) * widest <= self.kv_budget_tokens
        assert len({one.job.adapter for one in running} - {None}) <= self.max_adapters
        assert all(0 <= one.read <= one.job.prompt_tokens for one in running)
        assert all(
            job.tenant in self._tenants and (job.tenant, job.adapter) in self._adapters
            for job in self._jobs()
        )

    # -- parts

    def _jobs(self) -> Iterable[Job]:
        yield from (waiting.job for waiting in self._waiting.values())
        yield from (running.job for running in self._running.values())

    def _candidates(self) -> list[_Waiting]:
        """Requests that may begin: not those that will soon be able to share a prefix that is being read now."""
        in_prefill: dict[bytes, list[_Running]] = {}
        for running in self._running.values():
            if running.job.prefix_keys and running.read < running.job.prompt_tokens:
                in_prefill.setdefault(running.job.prefix_keys[0], []).append(running)
        if not in_prefill:
            return list(self._waiting.values())
        return [
            waiting
            for waiting in self._waiting.values()
            if not any(
                _common_blocks(waiting.job.prefix_keys, other.job.prefix_keys) > other.shared_blocks
                for other in in_prefill.get(
                    waiting.job.prefix_keys[0] if waiting.job.prefix_keys else b"", ()
                )
            )
        ]

    def _next_of(self, candidates: list[_Waiting], claimed: dict[str, int]) -> _Waiting:
        """The one that is admitted next; the module's docstring has the order."""
        urgency: dict[str, int] = {}
        for waiting in candidates:
            job = waiting.job
            since = max(waiting.since, self._served.get(job.tenant, 0))
            own = job.priority + (self._steps - since) // AGING
            urgency[job.tenant] = max(own, urgency.get(job.tenant, own))

        def turn(waiting: _Waiting) -> tuple[int, int, int, int, int]:
            job = waiting.job
            had = self._tenants[job.tenant] + claimed.get(job.tenant, 0)
            priority = job.priority + (self._steps - waiting.since) // AGING
            return (
                -urgency[job.tenant],
                had,
                -priority,
                self._adapters[job.tenant, job.adapter],
                waiting.order,
            )

        return min(candidates, key=turn)

    def _charge(self, job: Job, tokens: int) -> None:
        self._tenants[job.tenant] += tokens
        self._adapters[job.tenant, job.adapter] += tokens

    @staticmethod
    def _join(counts: dict[_Name, int], name: _Name, present: set[_Name]) -> None:
        least = min((counts[other] for other in present), default=0)
        counts[name] = counts[name] if name in present else max(counts.get(name, 0), least)


def _common_blocks(one: tuple[bytes, ...], other: tuple[bytes, ...]) -> int:
    """How many blocks two prompts have in common. An equal key means that those before it are equal too."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[middle - 1] == other[middle - 1] else (low, middle - 1)
    return low
