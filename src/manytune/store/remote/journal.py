"""The changes of a store on shared storage, none of which is lost: each is an index of the next number.

A writer reads the index of the highest number, n, and creates that of n + 1 with its change, which the storage refuses
if there is one: another writer was faster, and the change is made again to what that one wrote. So changes happen one
after another, without a lock that a killed process could leave.

Whether a change was made isn't always known from the answer, which may be lost, or come from a second try after the
first has succeeded; and a writer that was held up for long may create an index whose number others have passed and
removed. So every index has the ids of the last changes, and a change counts as made only if the highest index has its
id.
"""

from __future__ import annotations

import logging
import random
import secrets
import time
from collections.abc import Callable
from contextlib import suppress

from manytune.errors import LockedError, StoreError, UnreachableError
from manytune.store.remote.index import MOST_BYTES, Index, index_name, index_number
from manytune.store.remote.objects import AbsentError, Objects

_log = logging.getLogger(__name__)
_PATIENCE = 120.0  # seconds
_FAILURES = 3  # tries to write whose outcome was unknown, and which hadn't arrived
_PAUSE = 0.02  # seconds after the first lost race
_LONGEST_PAUSE = 1.0
_KEPT = 20  # former indexes that stay, so that a reader finds the one it has just seen in a listing
_MOST_FORMER = 60  # before they are removed together


class Journal:
    """Reads and changes the index of a store. Any number of threads, processes and machines may use one store at once.

    Args:
        objects: The store's objects.
    """

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def newest(self, known: Index | None = None) -> Index:
        """The present index.

        Args:
            known: One that was read before; returned if it is the present one, which takes one request.

        Raises:
            UnreachableError: The storage can't be reached.
            StoreError: There is no bucket, or it can't be read with these credentials.
            DamagedError: The index isn't one.
        """
        for _ in range(5):
            numbers = self._numbers()
            highest = max(numbers, default=0)
            if known is not None and known.number == highest:
                return known
            if highest == 0:
                return Index()
            name = index_name(highest)
            with suppress(AbsentError):  # removed, since many changes were made after the listing
                content = self._objects.read(name, most=MOST_BYTES)
                return Index.from_bytes(content, number=highest, where=self._objects.location.url(name))
        raise UnreachableError(f"{self._objects.location}: its index changes faster than it can be read.")

    def change(self, change: Callable[[Index], Index], *, known: Index | None = None) -> Index:
        """Make a change that is there for everybody once this returns.

        Args:
            change: Makes the changed index of the present one, or raises what speaks against it. It is called again if
                another writer was faster.
            known: An index that was read before.

        Returns:
            The present index, in which the change is; or the same that `change` was given, if it returned just that.

        Raises:
            UnreachableError: The storage can't be reached; whether the change was made isn't known then.
            LockedError: Others were faster each time.
            StoreError: The storage can't be written.
        """
        self._objects.require_writable()
        change_id = secrets.token_hex(16)
        deadline, pause, failed = time.monotonic() + _PATIENCE, _PAUSE, 0
        present = self.newest(known)
        while True:
            changed = change(present)
            if changed is present:
                return present
            present, is_made, failure = self._put(present.succeeded_by(changed, change_id), change_id)
            if is_made:
                return present
            failed += failure is not None
            if failure is not None and failed == _FAILURES:
                raise failure
            if time.monotonic() > deadline:
                raise LockedError(
                    f"{self._objects.location}: other writers were faster for {_PATIENCE:.0f} s. Try again."
                )
            time.sleep(pause * random.uniform(0.2, 1.0))  # noqa: S311 - so that writers don't keep in step
            pause = min(2 * pause, _LONGEST_PAUSE)

    # -- parts

    def _put(self, index: Index, change_id: str) -> tuple[Index, bool, UnreachableError | None]:
        """Try to make an index the present one.

        Returns:
            The present one, whether the change is in it, and why it isn't known from the answer.
        """
        content = index.to_bytes()
        if len(content) > MOST_BYTES:
            raise StoreError(
                f"{self._objects.location}: the index would have {len(content):,} bytes; at most {MOST_BYTES:,} are "
                "read. Remove adapters, or use another prefix for some."
            )
        name, failure = index_name(index.number), None
        try:
            is_created = self._objects.create(name, content)
        except UnreachableError as error:
            is_created, failure = False, error  # or it is created: the present index shows it
        if is_created:
            numbers = self._numbers()
            if max(numbers, default=0) == index.number:
                self._remove_former(numbers)
                return index, True, None
        present = self.newest()
        is_made = change_id in present.recent
        if is_created and not is_made:  # its number was passed by others long ago
            self._objects.delete([name])
        return present, is_made, failure

    def _numbers(self) -> list[int]:
        found = map(index_number, self._objects.list("index"))
        return sorted(number for number in found if number is not None)

    def _remove_former(self, numbers: list[int]) -> None:
        if len(numbers) <= _MOST_FORMER:
            return
        try:
            self._objects.delete(map(index_name, numbers[:-_KEPT]))
        except StoreError as error:  # the change is made; the next writer tries it again
            _log.warning("former indexes can't be removed: %s", error)
