"""How many answers a tenant may have waiting or running, whatever other tenants have.

Quotas count answers, not requests, and each tenant may have as many as the server has in its batch and its queue: who
has used up theirs is refused, and nobody else. Which of the waiting answers are next is the engine's scheduler's to
say, where tenants have equal shares.
"""

from __future__ import annotations

from collections import Counter

from manytune.server.http_errors import queue_full


class TenantQuotas:
    """The answers that each tenant has waiting or running. To be used on the event loop.

    Args:
        of_tenant: Answers that one tenant may have waiting or running.
    """

    def __init__(self, of_tenant: int) -> None:
        self._of_tenant = of_tenant
        self._reserved: Counter[str] = Counter()

    def reserve(self, tenant: str, count: int = 1) -> Reservation:
        """Reserve the answers of one request, all or none.

        Raises:
            HttpError: 429 if the tenant has too few left.
        """
        if self._reserved[tenant] + count > self._of_tenant:
            raise queue_full()
        self._reserved[tenant] += count
        return Reservation(self, tenant, count)

    def _release(self, tenant: str, count: int) -> None:
        self._reserved[tenant] -= count
        self._reserved += Counter()  # drops entries at zero


class Reservation:
    """The answers of one request."""

    def __init__(self, quotas: TenantQuotas, tenant: str, count: int) -> None:
        self._quotas, self._tenant, self._count = quotas, tenant, count

    def release(self) -> None:
        """Release one answer; nothing if none is left."""
        if self._count:
            self._count -= 1
            self._quotas._release(self._tenant, 1)

    def release_all(self) -> None:
        """Release all answers that are left."""
        self._quotas._release(self._tenant, self._count)
        self._count = 0
