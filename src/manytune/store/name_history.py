"""Which versions a name has had: what a way back to a former one needs.

    former/summaries          a line for each version that had the name: its digest, and since when; the last one has it

A version that another has replaced stays in the store until it is removed. Whatever changes something is to be called
with the store's lock in hand.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from manytune.atomic import make_directory
from manytune.errors import StoreError, reason_of
from manytune.store.staging import Staging

_LINE = re.compile(r"([0-9a-f]{64}) (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)?")
_MOST = 20


@dataclass(frozen=True)
class NamedVersion:
    """A version that has or had a name.

    Attributes:
        digest: The version.
        since: When it got the name last, in UTC, as `2026-01-31T12:00:00Z`; None if that isn't known.
    """

    digest: str
    since: str | None


class NameHistory:
    """The versions of names, the last twenty of each.

    Args:
        folder: Where they are written.
        staging: Where its files are written before they appear.
    """

    def __init__(self, folder: Path, staging: Staging) -> None:
        self._folder = folder
        self._staging = staging

    def of(self, file_name: str) -> list[NamedVersion]:
        """The versions of a name, the newest first; none if it never changed since this is kept.

        Args:
            file_name: The name, as its file is called.

        Raises:
            StoreError: What is kept can't be read.
        """
        file = self._folder / file_name
        try:
            text = file.read_bytes()[: 100 * (_MOST + 1)].decode("ascii", "replace")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreError(
                f"{file}: the name's former versions can't be read ({reason_of(error)}). Make the file readable."
            ) from error
        found = [_LINE.fullmatch(line) for line in text.splitlines()]
        return [NamedVersion(one[1], one[2]) for one in reversed(found) if one is not None]

    def note(self, file_name: str, former: str | None, digest: str) -> None:
        """Write down that a version gets a name.

        Args:
            file_name: The name, as its file is called.
            former: The version that had it; None if none had.
            digest: The version that gets it.

        Raises:
            StoreError: What was written before can't be read, so that it would be lost.
        """
        if former == digest:
            return
        known = self.of(file_name)
        if former is not None and former not in [one.digest for one in known]:
            known.insert(0, NamedVersion(former, None))  # it got the name before this was kept
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        kept = [NamedVersion(digest, now), *(one for one in known if one.digest != digest)][:_MOST]
        make_directory(self._folder)
        lines = "".join(f"{one.digest} {one.since or ''}\n" for one in reversed(kept))
        self._staging.put(self._folder / file_name, lines)

    def forget(self, file_name: str) -> None:
        """The name is gone, and what it meant."""
        (self._folder / file_name).unlink(missing_ok=True)
