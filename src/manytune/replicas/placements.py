"""What Ray Serve's router has done, for the front in the same process.

Ray copies a router's class, with its module and the objects in it, into the processes that use it. So what it has done
is kept in another module, which it reaches as a module: of these a process has one.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Placements:
    """The state of a router.

    Attributes:
        replicas: The replicas that take requests.
        routed: Requests by replica and by how it was chosen; see `router.Router`.
    """

    replicas: tuple[str, ...] = ()
    routed: Counter[tuple[str, str]] = field(default_factory=Counter)


#: Of the one handle that the front has.
PLACEMENTS = Placements()
