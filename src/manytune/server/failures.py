"""What has gone wrong with an adapter since the server started."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Failures:
    """The errors of one version of an adapter.

    Attributes:
        digest: The version.
        count: How many there were.
        last: The last message.
    """

    digest: str
    count: int
    last: str
