"""Which texts a forward reads, of all requests that wait for it: fair shares and bounded batches. No tensors.

A batch begins with the longest text of the request whose turn it is, and takes in further ones that aren't longer, as
long as it has no more tokens than a step may have, padding included. Each place goes to the tenant that has had the
fewest tokens, and of its requests to the one that has had the fewest. So neither a tenant nor a request waits for the
end of another's long list. A text that is longer than a step goes alone.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Job = TypeVar("Job", bound=Hashable)

_NARROW = (
    64  # tokens: up to this width a batch takes in texts of any length, beyond it none shorter than a quarter
)


@dataclass(eq=False)
class _Waiting(Generic[Job]):
    job: Job
    tenant: str
    order: int
    goes_alone: bool
    had: int
    rows: list[tuple[int, int]]  # length and number of each text that waits, the shortest first

    def next_row(self, width: int | None) -> int | None:
        """The place in `rows` of the longest text that fits a batch; None if none does, or if there is no batch yet."""
        if width is None:
            return len(self.rows) - 1
        place = bisect_right(self.rows, width, key=lambda row: row[0]) - 1
        shortest = 0 if width <= _NARROW else width // 4
        return place if place >= 0 and self.rows[place][0] >= shortest else None


class TextQueue(Generic[Job]):
    """The texts that wait."""

    def __init__(self) -> None:
        self._waiting: dict[Job, _Waiting[Job]] = {}
        self._tenants: dict[str, int] = {}  # tokens that each has had
        self._added = 0

    @property
    def busy(self) -> bool:
        """Whether any text waits."""
        return bool(self._waiting)

    def add(self, job: Job, lengths: Sequence[int], *, tenant: str, goes_alone: bool = False) -> None:
        """Put the texts of a request into the queue.

        Args:
            job: The request.
            lengths: The length of each text in tokens.
            tenant: Whom it belongs to.
            goes_alone: Whether each of its texts needs a forward of its own.
        """
        assert lengths and job not in self._waiting
        # Who was away, or is new, starts level with the least served one present.
        if all(one.tenant != tenant for one in self._waiting.values()):
            present = {one.tenant for one in self._waiting.values()}
            least = min((self._tenants[name] for name in present), default=0)
            self._tenants[tenant] = max(self._tenants.get(tenant, 0), least)
        had = min((one.had for one in self._waiting.values() if one.tenant == tenant), default=0)
        rows = sorted((length, number) for number, length in enumerate(lengths))
        self._waiting[job] = _Waiting(job, tenant, self._added, goes_alone, had, rows)
        self._added += 1

    def remove(self, job: Job) -> None:
        """Forget the texts of a request that still wait, if any do."""
        self._waiting.pop(job, None)
        present = {one.tenant for one in self._waiting.values()}
        if len(self._tenants) > 2 * len(present) + 64:
            self._tenants = {name: had for name, had in self._tenants.items() if name in present}

    def next_batch(self, most_tokens: int) -> list[tuple[Job, int]]:
        """The texts of the next forward, each as its request and its number there. Mutates: they wait no longer."""
        batch: list[tuple[Job, int]] = []
        width: int | None = None
        candidates = list(self._waiting.values())
        while candidates and (width is None or (len(batch) + 1) * width <= most_tokens):
            one = min(
                candidates, key=lambda waiting: (self._tenants[waiting.tenant], waiting.had, waiting.order)
            )
            place = None if one.goes_alone and batch else one.next_row(width)
            if place is None:
                candidates.remove(one)
                continue
            length, number = one.rows.pop(place)
            width = length if width is None else width
            batch.append((one.job, number))
            one.had += length
            self._tenants[one.tenant] += length
            if not one.rows:
                candidates.remove(one)
                self.remove(one.job)
            if one.goes_alone:
                break
        return batch
