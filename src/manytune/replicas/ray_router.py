"""Ray Serve's choice of a replica: the same consistent hashing with bounded loads as for the workers of one machine."""

from __future__ import annotations

from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from manytune.replicas import placements
from manytune.replicas.contract import Route
from manytune.replicas.hashing import Ring, choose


class AffinityRouter(RequestRouter):
    """Sends a request to the replica that its key belongs to, unless that has more than its share.

    A handle has one router, in the process that uses it; it says in `PLACEMENTS` what it does.
    """

    def initialize_state(self, **_: Any) -> None:
        """See `RequestRouter`."""
        self._ring = Ring(())

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """See `RequestRouter`."""
        super().update_replicas(replicas)
        self._follow()

    def on_replica_actor_died(self, replica_id: Any) -> None:
        """See `RequestRouter`."""
        super().on_replica_actor_died(replica_id)
        self._follow()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """See `RequestRouter`: ranks of one replica each, the right one first."""
        route = _route_of(pending_request)
        found = {one.replica_id.unique_id: one for one in candidate_replicas}
        possible = {name: one for name, one in found.items() if name not in route.lost} or found
        if not possible:
            return []
        if route.key is None:
            first, how = min(possible), "any"
        else:
            loads = {name: self._load(one) for name, one in possible.items()}
            order = [name for name in self._ring.order(route.key) if name in loads]
            first = choose(self._ring, route.key, loads) if order else min(possible)
            how = "first" if order and first == next(self._ring.order(route.key)) else "overflow"
        placements.PLACEMENTS.routed[first, how] += 1
        others = sorted(possible.keys() - {first})
        return [[possible[name]] for name in (first, *others)]

    def _load(self, replica: RunningReplica) -> int:
        return self.replica_queue_len_cache.get(replica.replica_id) or 0

    def _follow(self) -> None:
        names = tuple(sorted(one.unique_id for one in self.curr_replicas))
        if names != placements.PLACEMENTS.replicas or self._ring.members != frozenset(names):
            self._ring = Ring(names)
            placements.PLACEMENTS.replicas = names


def _route_of(pending: PendingRequest | None) -> Route:
    found = next((one for one in pending.args if isinstance(one, Route)), None) if pending else None
    return found or Route()
