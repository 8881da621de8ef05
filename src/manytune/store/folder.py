"""Adapters that lie in a directory of their own each, as `save_pretrained` or runs leave them, looked at as a store.

    FolderStore("adapters", base)        adapters/support/adapter_config.json, adapters/qa/adapter_config.json, …

The directory is only read. Whole copies are kept in a store in the cache directory, so that what is in use stays as it
is while somebody writes into the directory.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from manytune.caches import cache_directory
from manytune.errors import ManytuneError, UnreachableError
from manytune.methods.config import CONFIG_NAME, PeftConfig
from manytune.store.contents import contents_of
from manytune.store.description import is_store
from manytune.store.run_directory import adapter_at
from manytune.store.store import AdapterStore

if TYPE_CHECKING:
    from manytune.store.base import Base

_log = logging.getLogger(__name__)
_QUIET = 1.0  # seconds after which a file that was written counts as whole

#: What tells one state of an adapter's files from another: name, inode, size and time of each.
_Signature = tuple[tuple[str, int, int, int], ...]


class FolderStore(AdapterStore):
    """The adapters in a directory's subdirectories, or in a store that appears there later.

    Args:
        folder: The directory. It needn't exist, and is never written to.
        base: Their base, on which each is checked when it is found.
        examine: Raises why an adapter's directory is refused, before anything in it is read; None to refuse none.
    """

    def __init__(self, folder: str | Path, base: Base, examine: Callable[[Path], None] | None = None) -> None:
        self.folder = Path(folder).expanduser()
        self._base = base
        self._examine = examine
        identity = f"{self.folder.resolve()}\n{base.fingerprint.identity}"
        super().__init__(cache_directory() / "folders" / hashlib.sha256(identity.encode()).hexdigest()[:32])
        #: Why adapters couldn't be taken over, by name.
        self.problems: dict[str, str] = {}
        self._seen: dict[str, _Signature] = {}
        self._without_name: set[str] = set()
        self._is_first = True

    def refresh(self) -> None:
        """Take over what has changed in the directory: new adapters, new versions, and that some are gone.

        Raises:
            UnreachableError: The directory was there and isn't; what was taken over stays.
        """
        if self._seen and not self.folder.is_dir():
            raise UnreachableError(
                f"{self.folder}: the directory was here and isn't now. Mount it again, or restore it; its adapters are "
                "served meanwhile. To have them served no more, remove them one by one, or restart the server."
            )
        found = adapters_in(self.folder)
        changed = False
        for name, directory in found.items():
            signature = _signature(directory)
            if self._seen.get(name) != signature:
                changed = True
                self._take(name, directory, signature)
        for name in self._seen.keys() - found.keys():
            changed = True
            del self._seen[name]
            self.problems.pop(name, None)
        usable = {name for name in self._seen if name not in self.problems or not self._is_first}
        for name in self.names().keys() - usable:
            self.unalias(name)
        if changed or self._is_first:
            self._remove_former()
        self._is_first = False

    def remove_unnamed(self, digest: str) -> None:
        """Remove an adapter unless another process has named or removed it meanwhile."""
        with self._lock():
            if digest in self._labels.names() or not self.directory(digest).is_dir():
                return
            removed = self._taken(digest)
        shutil.rmtree(removed, ignore_errors=True)

    def _take(self, name: str, directory: Path, signature: _Signature) -> None:
        """Copy one adapter; if it can't be used, its former version stays."""
        signature = self._once_written(directory, signature)
        self._seen[name] = signature
        try:
            if self._examine is not None:
                self._examine(directory)
            entry = self.add(directory, name=name, move=True, base=self._base)
        except (ManytuneError, OSError) as error:
            self.problems[name] = str(error)
            _log.warning("%s can't be served: %s", name, error)
            return
        self.problems.pop(name, None)
        if entry.manifest.unservable is not None:
            _log.warning("%s can't be served: %s", name, entry.manifest.unservable)
        self._compare_names(name, directory)

    def _once_written(self, directory: Path, signature: _Signature) -> _Signature:
        """The signature once nobody is writing any more, for at most a few times a second."""
        for _ in range(5):
            newest = max((modified for *_, modified in signature), default=0) / 1e9
            age = time.time() - newest
            if not 0 <= age < _QUIET:
                break
            time.sleep(_QUIET - age)
            after = _signature(directory)
            if after == signature:
                break
            signature = after
        return signature

    def _compare_names(self, name: str, directory: Path) -> None:
        """Warn of an adapter that names another base than it will run on; its tensors may fit both."""
        named: str | None = PeftConfig.from_pretrained(directory).base_model_name_or_path
        ours = {Path(self._base.name).name, Path(str(self._base.model.name_or_path)).name}
        if named and Path(named).name not in ours:
            _log.warning(
                "%s says that its base is %s; here it runs on %s. If that is another model, its answers are worthless.",
                name,
                named,
                self._base.name,
            )

    def _remove_former(self) -> None:
        """Remove versions that had no name at the last change already; a request may still be on its way to others."""
        without = {entry.digest for entry in self.entries() if not entry.names}
        for digest in without if self._is_first else without & self._without_name:
            self.remove_unnamed(digest)
        self._without_name = without


def adapters_in(folder: Path) -> dict[str, Path]:
    """The adapters in a directory by name: its subdirectories and runs, itself, or those of a store."""
    if not folder.is_dir():
        return {}
    if is_store(folder):
        store = AdapterStore(folder)
        return {name: store.directory(digest) for name, digest in store.names().items()}
    if (folder / CONFIG_NAME).is_file():
        return {folder.resolve().name: folder}
    inside = {path.name: adapter_at(path) for path in sorted(folder.iterdir()) if path.name[0] != "."}
    return {name: path for name, path in inside.items() if (path / CONFIG_NAME).is_file()}


def store_at(
    directory: str | Path, base: Base, examine: Callable[[Path], None] | None = None
) -> AdapterStore:
    """What serves the adapters of a directory: the store that is there, or else a `FolderStore`.

    Args:
        directory: The directory.
        base: The adapters' base.
        examine: As for `FolderStore`.

    Raises:
        StoreError: There is something else.
    """
    path = Path(directory).expanduser()
    require_adapters_or_nothing(path)
    return AdapterStore(path) if is_store(path) else FolderStore(path, base, examine)


def require_adapters_or_nothing(directory: str | Path) -> None:
    """Refuse a directory that is neither a store, nor empty, nor absent, and has no adapters in it.

    Raises:
        StoreError: It is; or it is a store that can't be read.
    """
    path = Path(directory).expanduser()
    if is_store(path) or not adapters_in(path):
        AdapterStore(path)


def _signature(directory: Path) -> _Signature:
    contents = contents_of(directory)
    found = []
    for name in (*contents.files, *contents.tokenizer):
        try:
            status = (directory / name).stat()
        except OSError:  # somebody is writing
            continue
        found.append((name, status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(found)
