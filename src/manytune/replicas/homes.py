"""Where keys live: each on one member, so that all members have about as much to do.

A circle of hashes (`hashing`) needs no memory and is the same for all who know the members, but gives a member the
popular keys that happen to lie on its part. One front that sees all requests can do better: a new key gets the member
that has been asked least lately, and a key moves when its member is full and the busier of the two is less busy
afterwards. What a key was asked lately is a sum in which each request counts 1 - 1/RECENT of the one after it.

Loads are bounded as in `hashing`: a member whose load has reached the capacity is passed over.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from manytune.replicas.hashing import Ring, capacity

#: How many requests back "lately" reaches, about.
RECENT = 256
#: ε of the capacity. Members are about as busy in the long run, so only chance has to fit in: of 32 requests at a time
#: for 32 adapters under Zipf traffic on two members, 0.25 keeps about 95% at home, and 0.125 about 90%.
SLACK = 0.25
#: How many keys are remembered; the one that wasn't asked for longest is forgotten.
MOST_KEYS = 4096
_LARGEST_UNIT = 1e9


@dataclass
class _Home:
    """Where a key lives.

    Attributes:
        member: Its member.
        asked: How much it was asked lately.
    """

    member: str
    asked: float = 0.0


class Homes:
    """The homes of keys, and the choice of a member for each request.

    Args:
        members: All members, whether they work now or not: a key comes back to its own when that one does.
        most: How many keys are remembered.
    """

    def __init__(self, members: Collection[str], *, most: int = MOST_KEYS) -> None:
        self._ring = Ring(members)
        self._most = most
        self._homes: OrderedDict[str, _Home] = OrderedDict()
        self._asked = dict.fromkeys(members, 0.0)
        self._unit = 1.0  # what a request counts now; it grows, which lets all earlier ones count less

    def choose(self, key: str, loads: Mapping[str, float], *, weight: float = 1) -> tuple[str, bool]:
        """The member for a request, and whether it is the key's home.

        Args:
            key: What lives on a member.
            loads: The loads of the members that can take a request now, at least one; others are passed over.
            weight: What the request adds.
        """
        home = self._home(key, loads)
        self._count(home, weight)
        limit = capacity(sum(loads.values()), len(loads), weight=weight, slack=SLACK)
        if loads.get(home.member, limit) < limit:
            return home.member, True
        other = next(
            one for one in self._ring.order(key) if one != home.member and loads.get(one, limit) < limit
        )
        if home.member in loads and self._asked[other] + home.asked < self._asked[home.member]:
            self._asked[home.member] -= home.asked
            self._asked[other] += home.asked
            home.member = other
        return other, False

    def _home(self, key: str, loads: Mapping[str, float]) -> _Home:
        if key in self._homes:
            self._homes.move_to_end(key)
            return self._homes[key]
        # Of those that were asked as little, the first on the circle.
        member = min((one for one in self._ring.order(key) if one in loads), key=self._asked.__getitem__)
        self._homes[key] = _Home(member)
        if len(self._homes) > self._most:
            _, forgotten = self._homes.popitem(last=False)
            self._asked[forgotten.member] -= forgotten.asked
        return self._homes[key]

    def _count(self, home: _Home, weight: float) -> None:
        self._unit *= 1 + 1 / RECENT
        if self._unit > _LARGEST_UNIT:
            for one in self._homes.values():
                one.asked /= self._unit
            self._asked = {member: asked / self._unit for member, asked in self._asked.items()}
            self._unit = 1.0
        home.asked += weight * self._unit
        self._asked[home.member] += weight * self._unit
