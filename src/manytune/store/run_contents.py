"""What a run writes into its directory, so that nothing else is ever removed with it."""

from __future__ import annotations

import json
import re
from pathlib import Path

from manytune.errors import RunError
from manytune.methods.checkpoint.files import TENSORS_NAME
from manytune.methods.config import CONFIG_NAME
from manytune.store.contents import CARD_NAME, TOKENIZER_NAMES
from manytune.store.manifest import MANIFEST_NAME
from manytune.store.run_directory import RunDirectory

_LONGEST = 1 << 20  # bytes of an environment.json; a run's has one kilobyte
_ADAPTER_FILES = frozenset({CONFIG_NAME, TENSORS_NAME, MANIFEST_NAME, CARD_NAME, *TOKENIZER_NAMES})
_CHECKPOINT_FILE = re.compile(r"step-\d{8}/[\w.-]+\.(json|safetensors)")
_EVENTS = re.compile(r"(.*/)?events\.out\.tfevents\.[^/]+")
_UNFINISHED = re.compile(r"(.*/)?\.[^/]+\.manytune-(tmp|old)-[0-9a-f]{8}(/.*)?")


def is_of_a_run(directory: RunDirectory) -> bool:
    """Whether a run was begun there: whether its `environment.json` is one that a run wrote.

    A recipe alone is no sign of it: people keep theirs next to their data.
    """
    file = directory.environment_file
    try:
        if not file.is_file() or file.stat().st_size > _LONGEST:
            return False
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {"manytune", "packages", "started"} <= set(content)


def foreign_entries(directory: RunDirectory) -> list[str]:
    """What is in a run's directory that no run writes, as paths within it; a directory ends in a slash.

    A symbolic link in the place of a directory is foreign: what it leads to is somebody else's.
    """
    found = []
    own = {file.name for file in directory.files}
    for entry in sorted(directory.path.iterdir()):
        if entry.name in own and entry.is_file() and not entry.is_symlink():
            continue
        if entry.is_symlink() or not entry.is_dir() or entry not in directory.folders:
            found.append(f"{entry.name}/" if entry.is_dir() and not entry.is_symlink() else entry.name)
            continue
        found += [f"{entry.name}/{inner}" for inner in _files(entry) if not _is_own(directory, entry, inner)]
    return [name for name in found if not _UNFINISHED.fullmatch(name)]


def require_removable(directory: RunDirectory) -> None:
    """Refuse to replace a run in whose directory there is anything that no run wrote.

    Raises:
        RunError: There is something; it names the first few.
    """
    found = foreign_entries(directory)
    if found:
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise RunError(
            f"{directory.path}: --overwrite removes what a run wrote, and expected nothing else there; found "
            f"{', '.join(found[:5])}{more}. Nothing was removed. Move what is yours, or set output to another place."
        )


def _files(folder: Path) -> list[str]:
    """Paths of all that isn't a directory, links included, which aren't followed."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    )


def _is_own(directory: RunDirectory, folder: Path, inner: str) -> bool:
    if (folder / inner).is_symlink():
        return False
    if folder == directory.adapter:
        return inner in _ADAPTER_FILES
    pattern = _CHECKPOINT_FILE if folder == directory.checkpoints else _EVENTS
    return pattern.fullmatch(inner) is not None or _UNFINISHED.fullmatch(inner) is not None
