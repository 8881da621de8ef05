"""How many answers a tenant may have waiting or running, whatever other tenants have.

Places are counted by answers, not by requests, and each tenant has as many as the server has in its batch and its
queue: who fills theirs is refused, and nobody else. Which of the waiting answers are next is the engine's scheduler's
to say, where tenants have equal shares.
"""

from __future__ import annotations

from collections import Counter

from manytune.server.http_errors import queue_full


class Places:
    """The places of all tenants. To be used on the event loop.

    Args:
        of_tenant: Answers that one tenant may have waiting or running.
    """

    def __init__(self, of_tenant: int) -> None:
        self._of_tenant = of_tenant
        self._taken: Counter[str] = Counter()

    def take(self, tenant: str, count: int = 1) -> Taken:
        """Take places for the answers of one request, all or none.

        Raises:
            HttpError: 429 if the tenant has too few left.
        """
        if self._taken[tenant] + count > self._of_tenant:
            raise queue_full()
        self._taken[tenant] += count
        return Taken(self, tenant, count)

    def _free(self, tenant: str, count: int) -> None:
        self._taken[tenant] -= count
        self._taken += Counter()  # drops entries at zero


class Taken:
    """The places of one request."""

    def __init__(self, places: Places, tenant: str, count: int) -> None:
        self._places, self._tenant, self._count = places, tenant, count

    def free(self) -> None:
        """Give one place back; nothing if none is left."""
        if self._count:
            self._count -= 1
            self._places._free(self._tenant, 1)

    def free_all(self) -> None:
        """Give all places back that are left."""
        self._places._free(self._tenant, self._count)
        self._count = 0
