"""Objects below a prefix of shared storage: bounded reads, checked downloads, and creation that never overwrites.

Nothing is ever changed in place. So all that is asked of a kind of storage is that it creates an object only if there
is none of that name: S3's `If-None-Match: *`, `ifGenerationMatch=0` of Google, and their like, which fsspec calls the
mode "create".
"""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from manytune.errors import DamagedError, StoreError, UnreachableError
from manytune.extras import install_command
from manytune.store.remote.failures import explained, is_absent, is_lost_race, is_past_the_end, no_bucket
from manytune.store.remote.location import Location

_T = TypeVar("_T")
_PART = 16 << 20  # bytes of one read
_PAUSES = (0.2, 1.0)  # seconds before the tries after the first
_CONNECTING, _READING = 5, 60  # seconds

#: Of each kind of storage that creates an object only if there is none: the driver, and the extra that brings it.
_DRIVERS = {
    "s3": ("s3fs", "s3"),
    "s3a": ("s3fs", "s3"),
    "gs": ("gcsfs", "gs"),
    "gcs": ("gcsfs", "gs"),
    "az": ("adlfs", "az"),
    "abfs": ("adlfs", "az"),
    "abfss": ("adlfs", "az"),
}
#: Kinds whose drivers try again themselves, for up to a minute, and list a bucket that isn't there as an empty one.
_PATIENT = frozenset(kind for kind, (driver, _) in _DRIVERS.items() if driver != "s3fs")
_IN_MEMORY = "memory"
_CREATING = threading.Lock()  # fsspec's storage in memory looks first and creates then


class AbsentError(Exception):
    """There is no object of that name."""


class Objects:
    """The objects of a store. Any number of threads may use it.

    Args:
        location: Where they are.

    Raises:
        StoreError: There is no such kind of storage, or its driver isn't installed.
    """

    def __init__(self, location: Location) -> None:
        self.location = location
        self._files: Any = _filesystem(location)
        self.pauses = () if location.protocol in _PATIENT else _PAUSES

    def require_writable(self) -> None:
        """Refuse to write where two writers could overwrite each other.

        Raises:
            StoreError: The storage can't create an object only if there is none.
        """
        protocol = self.location.protocol
        if protocol not in _DRIVERS and protocol != _IN_MEMORY:
            raise StoreError(
                f"{self.location}: storage of the kind {protocol!r} can be read, but not written: it isn't known to "
                "refuse the second of two writers, so that changes could be lost. Use s3, gs, az or a directory."
            )

    def list(self, folder: str) -> dict[str, int]:
        """The sizes of all objects below a folder, by their names from the store's prefix on."""
        found = self._tried(folder, lambda: self._found(folder))
        if not found:
            self._require_bucket()
        return {} if found is None else found

    def read(self, name: str, *, most: int) -> bytes:
        """An object's content.

        Raises:
            AbsentError: It isn't there.
            DamagedError: It has more bytes than `most`.
        """
        content = self._read(name, 0, most + 1)
        if len(content) > most:
            raise DamagedError(f"{self.location.url(name)}: expected at most {most:,} bytes; there are more.")
        return content

    def download(self, name: str, target: Path, *, size: int, sha256: str) -> None:
        """Write an object into a new file, and compare it with what it must be.

        Raises:
            AbsentError: It isn't there.
            DamagedError: It has another size or other content.
        """
        state, done = hashlib.sha256(), 0
        with target.open("xb") as file:
            while done < size:
                # One byte more than there should be, which shows whether there is more.
                part = self._read(name, done, min(done + _PART, size + 1))
                done += len(part)
                if not part or done > size:
                    break
                state.update(part)
                file.write(part)
        if done != size or state.hexdigest() != sha256:
            found, mend = (
                "other content",
                "Remove the adapter from the store, and add it again from its source.",
            )
            if done != size:  # which adding sees
                found = f"expected {size:,} bytes, found {'more' if done > size else f'{done:,}'}"
                mend = "Add the adapter again from its source."
            raise DamagedError(
                f"{self.location.url(name)}: the object isn't what was uploaded ({found}). It wasn't kept. {mend}"
            )

    def create(self, name: str, content: bytes) -> bool:
        """Create an object if there is none of that name.

        Returns:
            Whether it was created now. False, too, if the answer to the first try was lost and the driver has tried
            again: who must know looks whether the object is its own.

        Raises:
            UnreachableError: It isn't known whether it was created.
        """
        path = f"{self.location.path}/{name}"
        try:
            if self.location.protocol == _IN_MEMORY:
                with _CREATING:
                    self._files.pipe_file(path, content, mode="create")
            else:
                self._files.pipe_file(path, content, mode="create")
        except Exception as error:
            if is_lost_race(error):
                return False
            if is_absent(error):  # all that it needs is the bucket
                self._require_bucket()
            raise explained(error, self.location, name) from error
        return True

    def upload(self, file: Path, name: str) -> None:
        """Copy a file to a name that nobody else uses."""
        path = f"{self.location.path}/{name}"
        self._tried(name, lambda: self._files.put_file(str(file), path), must_be=True)

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects; those that aren't there are passed over."""
        paths = [f"{self.location.path}/{name}" for name in names]
        if paths and self._tried("", lambda: self._removed(paths)) is None:
            for path in paths:  # one wasn't there, and some drivers stop at that
                self._tried("", lambda path=path: self._removed([path]))  # type: ignore[misc]

    # -- parts

    def _require_bucket(self) -> None:
        """Refuse a bucket that isn't there, where the driver doesn't."""
        if self.location.protocol not in _PATIENT:
            return
        try:
            self._files.info(self.location.bucket)
        except FileNotFoundError as error:
            raise no_bucket(self.location) from error
        except Exception:  # credentials for objects alone can't see it, and need not
            return

    def _removed(self, paths: Sequence[str]) -> bool:
        self._files.rm(paths)
        return True

    def _found(self, folder: str) -> dict[str, int]:
        prefix = f"{self.location.path}/"
        listed: Mapping[str, Mapping[str, Any]] = self._files.find(prefix + folder, detail=True)
        sizes = {}
        for path, about in listed.items():
            name = path.lstrip("/").removeprefix(prefix)
            size = about.get("size")
            # Whoever may write there may give an object any name: none but those below the folder are looked at.
            if name.startswith(f"{folder}/") and ".." not in name.split("/") and isinstance(size, int):
                sizes[name] = size
        return sizes

    def _read(self, name: str, start: int, end: int) -> bytes:
        path = f"{self.location.path}/{name}"

        def read() -> bytes:
            try:
                found: bytes = self._files.cat_file(path, start=start, end=end)
            except Exception as error:
                if is_past_the_end(error):
                    return b""
                raise
            return found

        content = self._tried(name, read)
        if content is None:
            raise AbsentError(self.location.url(name))
        return content

    def _tried(self, name: str, operation: Callable[[], _T], *, must_be: bool = False) -> _T | None:
        """What an operation returns, tried again if it fails for what may pass; None if what it needs isn't there."""
        for pause in (*self.pauses, None):
            try:
                return operation()
            except Exception as error:
                if not must_be and is_absent(error):
                    return None
                failure = explained(error, self.location, name)
                if pause is None or not isinstance(failure, UnreachableError):
                    raise failure from error
                time.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - so that two clients don't keep in step
        raise AssertionError("the last try returns or raises")


def _filesystem(location: Location) -> Any:
    import fsspec

    protocol = location.protocol
    if protocol not in fsspec.available_protocols():
        raise StoreError(
            f"{location}: there is no storage of the kind {protocol!r}. Expected s3, gs, az, file or a directory."
        )
    options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
    if protocol in ("s3", "s3a"):
        own = dict(fsspec.config.conf.get("s3", {}).get("config_kwargs", {}))
        retries = {"mode": "standard", "total_max_attempts": 2}
        limits = {"connect_timeout": _CONNECTING, "read_timeout": _READING, "retries": retries}
        options["config_kwargs"] = {**limits, **own}
    try:
        if protocol in ("gs", "gcs"):
            # It comes with the driver, which waits for ever without it.
            from aiohttp import ClientTimeout

            limit = ClientTimeout(total=None, sock_connect=_CONNECTING, sock_read=_READING)
            options["requests_timeout"] = fsspec.config.conf.get("gs", {}).get("requests_timeout", limit)
        files = fsspec.filesystem(protocol, **options)
    except ImportError as error:
        driver, extra = _DRIVERS.get(protocol, (None, None))
        how = f"pip install {driver}, or {install_command(extra)}" if driver and extra else f"{error}"
        raise StoreError(f"{location}: the driver for {protocol} isn't installed: {how}.") from error
    except Exception as error:  # an account isn't named, say
        raise explained(error, location) from error
    if protocol in ("s3", "s3a"):
        files.retries = 1  # botocore tries again, and so does `Objects`
    return files
