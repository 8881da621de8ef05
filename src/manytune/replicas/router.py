"""Which worker gets a request: the one where its key lives, unless that is lost or has more than its share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from manytune.replicas.contract import Route, no_replica
from manytune.replicas.homes import Homes


class Router:
    """The loads of replicas, and how requests were placed. To be used on one event loop.

    Args:
        members: All replicas, whether they work now or not: a key comes back to its own when that one does.

    Attributes:
        routed: Requests by replica and by how it was chosen: `first` for its key's own replica, `overflow` for another
            because that had more than its share or was lost, `any` for requests without a key.
    """

    def __init__(self, members: Collection[str]) -> None:
        self._homes = Homes(members)
        self._loads: Counter[str] = Counter()
        self.routed: Counter[tuple[str, str]] = Counter()

    @contextmanager
    def placed(self, route: Route, working: Collection[str]) -> Iterator[str]:
        """The replica for a request, whose load counts until the block ends.

        Args:
            route: What the request's place follows from.
            working: The replicas that take requests.

        Raises:
            HttpError: 503 if there is none.
        """
        possible = [member for member in working if member not in route.lost]
        if not possible:
            raise no_replica()
        if route.key is None:
            member, how = min(possible), "any"
        else:
            loads = {member: self._loads[member] for member in possible}
            member, is_home = self._homes.choose(route.key, loads, weight=route.weight)
            how = "first" if is_home else "overflow"
        self.routed[member, how] += 1
        self._loads[member] += route.weight
        try:
            yield member
        finally:
            self._loads[member] -= route.weight
