"""Whether a run may begin or continue in its directory, as far as that is seen without touching anything."""

from __future__ import annotations

import os

from manytune.errors import RunError
from manytune.store.run_contents import is_of_a_run
from manytune.store.run_directory import RunDirectory

_LONGEST = 255
"""Bytes of a file's name, on the file systems of Linux, macOS and Windows."""


def check_place(directory: RunDirectory, *, resume: bool, overwrite: bool) -> None:
    """Refuse what a look at the directory refuses; no model library is imported for it.

    A run that failed before its first step, for a mistake in its recipe say, has nothing that somebody could miss, and
    a new one replaces it without --overwrite.

    Args:
        directory: The run directory, which needn't be there.
        resume: Whether the run in it is to be continued.
        overwrite: Whether a run in it is to be replaced.

    Raises:
        RunError: There is a file, there is nothing to resume, or there is a run that nobody asked to replace.
    """
    path = directory.path
    if "\0" in str(path) or len(os.fsencode(path.name)) > _LONGEST:
        raise RunError(
            f"{str(path)[:60]!r}: no directory can have this name: it may have {_LONGEST} bytes and no NUL. "
            "Set output to another one."
        )
    if resume and overwrite:
        raise RunError("--resume continues what --overwrite removes; give one of them.")
    if path.exists() and not path.is_dir():
        raise RunError(f"{path}: the run directory's name is taken by a file. Set output to another one.")
    if resume and not directory.begun:
        raise RunError(f"{path}: there is no run to resume here. Leave --resume out to start one.")
    if resume and directory.finished:
        raise RunError(f"{path}: the run is complete, so there is nothing to resume.")
    if not resume and not overwrite and directory.begun and directory.has_results and is_of_a_run(directory):
        raise RunError(
            f"{path}: there is a run here already. Continue it with --resume, replace it with --overwrite, "
            "or set output to another directory."
        )
