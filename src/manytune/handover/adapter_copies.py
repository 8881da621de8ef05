"""Adapters as vLLM's resolver for a file system finds them: a directory each, whose options name the base as vLLM does.

    <root>/<what vLLM calls the adapter>/adapter_config.json, adapter_model.safetensors

vLLM loads an adapter that a request names from there if `base_model_name_or_path` in its options is, letter for letter,
what vLLM was given as its model; otherwise it says that there is no such model.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from manytune.atomic import atomic_directory
from manytune.caches import cache_directory
from manytune.errors import LockedError
from manytune.methods.checkpoint.format import TENSORS_NAME
from manytune.methods.config import CONFIG_NAME
from manytune.store.adapters import open_adapter
from manytune.store.locking import held


@contextmanager
def directory_for_copies() -> Iterator[Path]:
    """A directory in the cache for as long as the block runs; what a killed process has left there is removed."""
    place = cache_directory() / "handover"
    place.mkdir(parents=True, exist_ok=True)
    for left in place.iterdir():
        with suppress(LockedError, FileNotFoundError), held(left):
            shutil.rmtree(left, ignore_errors=True)
    own = place / f"{os.getpid()}-{secrets.token_hex(4)}"
    with held(own):
        try:
            yield own
        finally:
            shutil.rmtree(own, ignore_errors=True)


def write_copy(adapter: Path, target: Path, *, base: str) -> None:
    """Check an adapter's files, and write it for vLLM; one that is there already is kept.

    The tensors' file is the same file under a second name where the file system has such links: a store's files are
    never written again.

    Args:
        adapter: Its directory in the store.
        target: Its directory for vLLM.
        base: What vLLM calls its model.

    Raises:
        StoreError: It is damaged.
    """
    if target.is_dir():
        return
    open_adapter(adapter)
    options = json.loads((adapter / CONFIG_NAME).read_text(encoding="utf-8"))
    options["base_model_name_or_path"] = base
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_directory(target, existing="keep") as temporary:
        (temporary / CONFIG_NAME).write_text(json.dumps(options, indent=2) + "\n", encoding="utf-8")
        _link_or_copy(adapter / TENSORS_NAME, temporary / TENSORS_NAME)


def remove_copy(target: Path) -> None:
    """Remove an adapter that vLLM doesn't need any more."""
    shutil.rmtree(target, ignore_errors=True)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
