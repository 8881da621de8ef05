"""Which files of a directory are an adapter's. What Trainer and TRL leave next to it is neither read nor kept."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from manytune.errors import DamagedError
from manytune.methods.checkpoint.files import PICKLE_NAME, TENSORS_NAME
from manytune.methods.config import CONFIG_NAME
from manytune.store.manifest import MANIFEST_NAME

CARD_NAME = "README.md"
TEMPLATE_NAME = "chat_template.jinja"
#: What `save_pretrained` of a tokenizer writes: it says how prompts are made.
TOKENIZER_NAMES = frozenset(
    {
        "added_tokens.json",
        TEMPLATE_NAME,
        "chat_template.json",
        "merges.txt",
        "sentencepiece.bpe.model",
        "special_tokens_map.json",
        "spiece.model",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.json",
        "vocab.txt",
    }
)

#: Inode, size and time of each of some files; None for one that isn't there.
State = tuple[tuple[int, int, int] | None, ...]


@dataclass(frozen=True)
class Contents:
    """What is in an adapter's directory.

    Attributes:
        files: The adapter's own files, by their paths in the directory.
        tokenizer: Files of a tokenizer that lie next to them.
        others: Everything else at the top of the directory; a directory ends in a slash.
    """

    files: tuple[str, ...]
    tokenizer: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


def contents_of(directory: Path) -> Contents:
    """What is in an adapter's directory.

    One with a manifest was written by manytune and is the adapter's as a whole. In one without, HF PEFT's
    `save_pretrained` may have been joined by whatever wrote there: an optimizer's state, arguments, checkpoints.
    """
    if os.path.lexists(directory / MANIFEST_NAME):
        # Not rglob, which takes several times as long: a store's cache does this for each adapter that it loads.
        below = (Path(folder, name) for folder, _, names in os.walk(directory) for name in names)
        files = sorted(path.relative_to(directory).as_posix() for path in below)
        return Contents(tuple(files), tuple(name for name in files if name in TOKENIZER_NAMES))
    there = sorted(path.name for path in directory.iterdir())
    own = {CONFIG_NAME, CARD_NAME, TENSORS_NAME}
    if TENSORS_NAME not in there:
        own.add(PICKLE_NAME)  # to be refused by its name
    tokenizer = [name for name in there if name in TOKENIZER_NAMES]
    return Contents(
        tuple(name for name in there if name in own),
        tuple(tokenizer),
        tuple(
            f"{name}/" if (directory / name).is_dir() else name
            for name in there
            if name not in own and name not in TOKENIZER_NAMES
        ),
    )


def refuse_links(directory: Path, names: Iterable[str]) -> None:
    """Refuse files of an adapter that are links to somewhere else, before they are copied or sent anywhere.

    Whoever made the directory could have any file of this machine copied so: by a card that is a link to a key, for
    example. A hub's cache is made of links, to files of the same repository: these are followed.

    Args:
        directory: The adapter's directory.
        names: The files, by their paths in it; those that aren't there are passed over.

    Raises:
        DamagedError: One leads out.
    """
    root = directory.resolve()
    allowed = [root, *(above.parent / "blobs" for above in root.parents if above.name == "snapshots")]
    for name in names:
        file = directory / name
        if not os.path.lexists(file) or file.resolve() == root / name:
            continue
        target = file.resolve()
        if not any(target.is_relative_to(place) for place in allowed):
            raise DamagedError(
                f"{file}: expected a file of the adapter, found a link to {target}. Replace it by a copy if it belongs "
                "to the adapter, or remove it."
            )


def states_of(directory: Path, names: Iterable[str]) -> State:
    """What tells one state of files from another: inode, size and time of each; None for one that isn't there."""
    found: list[tuple[int, int, int] | None] = []
    for name in names:
        try:
            status = (directory / name).stat()
        except OSError:
            found.append(None)
        else:
            found.append((status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(found)


def checkpoints_in(directory: Path) -> list[str]:
    """The names of subdirectories that hold an adapter each, such as Trainer's checkpoints; the newest is the last."""
    found = [path.parent.name for path in directory.glob(f"*/{CONFIG_NAME}")]
    return sorted(found, key=lambda name: (len(name), name))
