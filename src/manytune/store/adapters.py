"""Adapters on disk: HF PEFT's directory plus a manifest, written whole and checked before use."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from manytune import __version__
from manytune.atomic import atomic_directory, atomic_write, moved_aside
from manytune.errors import BaseMismatchError, DamagedError, PeftWarning, StoreError
from manytune.methods.config import CONFIG_NAME
from manytune.store.content_checks import check_content
from manytune.store.contents import CARD_NAME, checkpoints_in, contents_of
from manytune.store.description import is_store
from manytune.store.digests import sha256_file
from manytune.store.fingerprint import Fingerprint
from manytune.store.manifest import MANIFEST_NAME, Description, Manifest
from manytune.store.run_directory import RunDirectory, adapter_at
from manytune.store.tokenizer_files import own_chat_template

if TYPE_CHECKING:
    from manytune.store.base import Base

_TENSORS = ".safetensors"


class Saveable(Protocol):
    """A model that writes its adapters in HF PEFT's format, as manytune's and peft's PeftModel do."""

    def save_pretrained(self, save_directory: str) -> None:
        """Write the adapter into a directory."""


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter's directory that has passed its checks.

    Attributes:
        path: The directory.
        manifest: What it says about itself; None for an adapter that HF PEFT wrote.
        note: What couldn't be checked, in a sentence; None if everything was.
        chat_template: The chat template of its own that its manifest has, or that lies next to it and isn't the given
            base's; None if it has none.
    """

    path: Path
    manifest: Manifest | None
    note: str | None
    chat_template: str | None = None


def save_adapter(model: Saveable, directory: Path, description: Description) -> Manifest:
    """Write an adapter and its manifest; an adapter that is there already is replaced.

    Args:
        model: The base with the adapter attached.
        directory: The adapter's directory; it appears under this name only when it is complete.
        description: What the manifest says about the adapter.
    """
    with atomic_directory(directory, existing="replace") as temporary:
        model.save_pretrained(str(temporary))
        files = {name: sha256_file(temporary / name) for name in _deciding_files(temporary)}
        manifest = manifest_of(description, files)
        (temporary / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
        put_scores_on_card(temporary, manifest)
    return manifest


def put_scores_on_card(directory: Path, manifest: Manifest) -> None:
    """Bring an adapter's card up to date with the scores in its manifest.

    Raises:
        CheckpointError: The card can't be read.
    """
    from manytune.methods.checkpoint.card import card_with_scores

    recipe = manifest.recipe or {}
    model = Path(str(recipe.get("output") or manifest.method)).name
    rows = (recipe.get("data") or {}).get("train")
    dataset = rows if isinstance(rows, str) else "the rows of its recipe"
    card = card_with_scores(directory / CARD_NAME, manifest.scores, model=model, dataset=dataset)
    if card is not None:
        atomic_write(directory / CARD_NAME, card)


def manifest_of(description: Description, files: Mapping[str, str]) -> Manifest:
    """The manifest of an adapter that is written now.

    Args:
        description: What the adapter is.
        files: The SHA-256 of its files by name.
    """
    values = {f.name: getattr(description, f.name) for f in dataclasses.fields(Description)}
    created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Manifest(**values, files=files, created=created, manytune=__version__)


def open_adapter(
    directory: str | Path,
    *,
    base: Base | None = None,
    base_tokenizer: bool = False,
    sha256: Callable[[Path], str] = sha256_file,
) -> StoredAdapter:
    """Check an adapter's directory and read its manifest.

    Checked are: that none of the adapter's files is a pickle, whatever its name; that each is the one that the manifest
    names; and, if a base is given, that the adapter was trained on it, and that a tokenizer next to it is the base's;
    a chat template of its own is given back. Without a manifest, files that aren't the
    adapter's, such as an optimizer's state, are never opened; see `contents_of`.

    Args:
        directory: As `save_adapter` or HF PEFT's `save_pretrained` wrote it.
        base: The base that the adapter is to run on.
        base_tokenizer: Use the base's tokenizer and chat template even if others lie next to the adapter.
        sha256: Gives the hash of a file, to be compared with the manifest's.

    Raises:
        StoreError: The directory holds no adapter, or one with another tokenizer than the base's.
        DamagedError: It holds a pickle, a damaged file or an unreadable manifest.
        BaseMismatchError: The adapter was trained on another base.

    Warns:
        PeftWarning: It was trained on this base, packed in another way.
    """
    path = Path(directory).expanduser()
    if (path / MANIFEST_NAME).is_file() and not (path / CONFIG_NAME).is_file():
        raise DamagedError(
            f"{path / CONFIG_NAME}: the adapter has a manifest, and this file is missing. Restore it, or add or train "
            "the adapter again."
        )
    if not (path / CONFIG_NAME).is_file():
        if RunDirectory(path).begun and not RunDirectory(path).adapter.is_dir():
            raise StoreError(
                f"{path}: this run isn't complete, so it has no adapter. Finish it with "
                "`manytune train RECIPE --resume`."
            )
        raise StoreError(
            f"{path}: {_what_is_there(path)}. Name a run, or an adapter's directory, which has an {CONFIG_NAME}."
        )
    contents = contents_of(path)
    for name in contents.files:
        check_content(path / name)
    template = None
    if base is not None and contents.tokenizer and not base_tokenizer:
        template = own_chat_template(path, contents.tokenizer, base.tokenizer)
    if not (path / MANIFEST_NAME).is_file():
        note = (
            f"it has no {MANIFEST_NAME}, so neither its files nor its base could be checked; "
            "HF PEFT writes adapters like that"
        )
        return StoredAdapter(path, None, note, template)
    manifest = Manifest.read(path / MANIFEST_NAME)
    _check_files(path, manifest, sha256)
    repacked = None if base is None else check_base(path, manifest, base.fingerprint, name=base.name)
    if repacked is not None:
        warnings.warn(f"{path}: {repacked}.", PeftWarning, stacklevel=2)
    kept = (manifest.encoding_options or {}).get("chat_template")
    return StoredAdapter(path, manifest, None, kept if isinstance(kept, str) else template)


def check_base(
    path: Path, manifest: Manifest, fingerprint: Fingerprint, *, name: str = "another"
) -> str | None:
    """Refuse an adapter of another base. One that is packed in another way is the same base.

    Args:
        path: The adapter's directory, for the message.
        manifest: What it says about itself.
        fingerprint: What identifies the base that it is to run on.
        name: What that base is called.

    Returns:
        What to know if the base is packed in another way than the one that it was trained on, as a clause; else None.

    Raises:
        BaseMismatchError: The adapter was trained on another base.
    """
    differing = manifest.fingerprint.differences(fingerprint)
    if differing:
        raise BaseMismatchError(
            f"{path}: the adapter was trained on another base; the {' and the '.join(differing)} differ. "
            f"Expected {manifest.base} ({manifest.fingerprint}); found {name} ({fingerprint}). "
            "Load the base that it was trained on."
        )
    return manifest.fingerprint.packing_note(fingerprint)


def add_scores(directory: Path, scores: Mapping[str, float]) -> Manifest:
    """Add scores to those in an adapter's manifest; a score of the same name is replaced.

    Raises:
        StoreError: The directory holds no adapter, or one without a manifest.
        DamagedError: It holds a damaged one.
    """
    stored = open_adapter(directory)
    if stored.manifest is None:
        raise StoreError(f"{directory}: scores go into the manifest, and {stored.note}.")
    manifest = dataclasses.replace(stored.manifest, scores={**stored.manifest.scores, **scores})
    atomic_write(stored.path / MANIFEST_NAME, manifest.to_json())
    put_scores_on_card(stored.path, manifest)
    return manifest


def _deciding_files(directory: Path) -> list[str]:
    """The files that decide what an adapter computes, by their path in the directory."""
    below = (Path(folder, name) for folder, _, names in os.walk(directory) for name in names)
    found = (file for file in below if file.suffix == _TENSORS or file.name == CONFIG_NAME)
    return sorted(file.relative_to(directory).as_posix() for file in found)


def _check_files(path: Path, manifest: Manifest, sha256: Callable[[Path], str]) -> None:
    for name, expected in manifest.files.items():
        file = path / name
        if not file.is_file():
            raise DamagedError(
                f"{file}: the manifest names this file, and it isn't there. Restore or train it again."
            )
        found = sha256(file)
        if found != expected:
            raise DamagedError(
                f"{file}: the file was changed or damaged after it was written: expected SHA-256 {expected}, "
                f"found {found}. Restore it, or train the adapter again."
            )
    unnamed = sorted(set(_deciding_files(path)) - set(manifest.files))
    if unnamed:
        raise DamagedError(f"{path / unnamed[0]}: the manifest doesn't name this file. Remove it.")


def _what_is_there(path: Path) -> str:
    aside = moved_aside(path)
    if aside is not None:
        return f"its replacement was interrupted; rename {aside} to {path.name} to restore the former one"
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return f"this is a recipe's file; its run is where `output` in it says, or runs/{path.stem}"
    if path.is_file():
        return "this is a file, and an adapter is a directory"
    if not path.is_dir():
        return "there is no such directory"
    if is_store(path):
        return f"this is a store of adapters; name one of them, and the store with --store {path}"
    if (inner := adapter_at(path)) != path:
        return f"this is a run; its adapter is in {inner}"
    inside = checkpoints_in(path)
    if inside:
        return f"its subdirectories hold adapters ({', '.join(inside[-5:])}); name one, such as {path / inside[-1]}"
    return "this directory holds no adapter"
