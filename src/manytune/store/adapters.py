"""Adapters on disk: HF PEFT's directory plus a manifest, written whole and checked before use."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import safetensors

from manytune import __version__
from manytune.errors import BaseMismatchError, StoreError
from manytune.store.base import Base
from manytune.store.files import atomic_directory, atomic_write, moved_aside, sha256_file
from manytune.store.fingerprint import Fingerprint
from manytune.store.manifest import MANIFEST_NAME, MOST_BYTES, Encoding, Manifest
from manytune.store.run_directory import adapter_at

CONFIG_NAME = "adapter_config.json"  # HF PEFT's
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
    """

    path: Path
    manifest: Manifest | None
    note: str | None


def save_adapter(
    model: Saveable,
    directory: Path,
    *,
    method: str,
    base: str,
    fingerprint: Fingerprint,
    template: Mapping[str, str] | None = None,
    templates: Mapping[str, Mapping[str, str]] | None = None,
    encoding: Encoding | None = None,
    recipe: Mapping[str, Any] | None = None,
    scores: Mapping[str, float] | None = None,
    combination: Mapping[str, Any] | None = None,
) -> Manifest:
    """Write an adapter and its manifest; an adapter that is there already is replaced.

    Args:
        model: The base with the adapter attached.
        directory: The adapter's directory; it appears under this name only when it is complete.
        method: The method's name, such as "lora".
        base: The base's name, and
        fingerprint: what recognises it, both as `load_base` gave them before anything was attached.
        template: The prompt template's parts.
        templates: The same of each task, if there are several; instead of `template`.
        encoding: Whether prompts went through the chat template.
        recipe: The recipe of the run.
        scores: Measured numbers by name.
        combination: What it was combined from; see `Manifest`.
    """
    with atomic_directory(directory, existing="replace") as temporary:
        model.save_pretrained(str(temporary))
        manifest = Manifest(
            method=method,
            base=base,
            fingerprint=fingerprint,
            template=template,
            templates=templates,
            combination=combination,
            encoding=encoding,
            recipe=recipe,
            scores=dict(scores or {}),
            files={name: sha256_file(temporary / name) for name in _deciding_files(temporary)},
            created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            manytune=__version__,
        )
        (temporary / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def open_adapter(directory: str | Path, *, base: Base | None = None) -> StoredAdapter:
    """Check an adapter's directory and read its manifest.

    Checked are: that no file is a pickle, whatever its name; that each file is the one that the manifest
    names; and, if a base is given, that the adapter was trained on it.

    Args:
        directory: As `save_adapter` or HF PEFT's `save_pretrained` wrote it.
        base: The base that the adapter is to run on.

    Raises:
        StoreError: The directory holds no adapter, a pickle, a damaged file or an unreadable manifest.
        BaseMismatchError: The adapter was trained on another base.
    """
    path = Path(directory).expanduser()
    if not (path / CONFIG_NAME).is_file():
        raise StoreError(f"{path}: {_what_is_there(path)}. An adapter's directory has an {CONFIG_NAME}.")
    for file in _files(path):
        _check_content(file)
    if not (path / MANIFEST_NAME).is_file():
        note = (
            f"it has no {MANIFEST_NAME}, so neither its files nor its base could be checked; "
            "HF PEFT writes adapters like that"
        )
        return StoredAdapter(path, None, note)
    manifest = Manifest.read(path / MANIFEST_NAME)
    _check_files(path, manifest)
    if base is not None:
        _check_base(path, manifest, base)
    return StoredAdapter(path, manifest, None)


def add_scores(directory: Path, scores: Mapping[str, float]) -> Manifest:
    """Put scores into an adapter's manifest, beside those that are there.

    Raises:
        StoreError: The directory isn't an intact adapter, or has no manifest.
    """
    stored = open_adapter(directory)
    if stored.manifest is None:
        raise StoreError(f"{directory}: scores go into the manifest, and {stored.note}.")
    manifest = dataclasses.replace(stored.manifest, scores={**stored.manifest.scores, **scores})
    atomic_write(stored.path / MANIFEST_NAME, manifest.to_json())
    return manifest


def _deciding_files(directory: Path) -> list[str]:
    """The files that decide what an adapter computes, by their path in the directory."""
    found = (file for file in _files(directory) if file.suffix == _TENSORS or file.name == CONFIG_NAME)
    return sorted(file.relative_to(directory).as_posix() for file in found)


def _files(directory: Path) -> list[Path]:
    # Not rglob: a store's cache does this for each adapter that it loads, and it takes several times as long.
    return sorted(Path(folder, name) for folder, _, names in os.walk(directory) for name in names)


def _check_files(path: Path, manifest: Manifest) -> None:
    for name, expected in manifest.files.items():
        file = path / name
        if not file.is_file():
            raise StoreError(
                f"{file}: the manifest names this file, and it isn't there. Restore or train it again."
            )
        found = sha256_file(file)
        if found != expected:
            raise StoreError(
                f"{file}: the file was changed or damaged after it was written: expected SHA-256 {expected}, "
                f"found {found}. Restore it, or train the adapter again."
            )
    unnamed = sorted(set(_deciding_files(path)) - set(manifest.files))
    if unnamed:
        raise StoreError(f"{path / unnamed[0]}: the manifest doesn't name this file. Remove it.")


def _check_base(path: Path, manifest: Manifest, base: Base) -> None:
    differing = manifest.fingerprint.differences(base.fingerprint)
    if differing:
        raise BaseMismatchError(
            f"{path}: the adapter was trained on another base; the {' and the '.join(differing)} differ. "
            f"Expected {manifest.base} ({manifest.fingerprint}); found {base.name} ({base.fingerprint}). "
            "Load the base that it was trained on."
        )


def _check_content(file: Path) -> None:
    """Refuse by content: a pickle can run any program when it is loaded, under whatever name."""
    if not file.is_file():  # a pipe would keep its reader waiting
        raise StoreError(f"{file}: expected a plain file.")
    size = file.stat().st_size
    with file.open("rb") as opened:
        head = opened.read(9)
    is_safetensors = head[8:] == b"{" and int.from_bytes(head[:8], "little") <= size
    is_pickle = head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    is_torch_file = head[:4] == b"PK\x03\x04"  # torch.save writes a zip archive with a pickle in it
    if (is_pickle and not is_safetensors) or is_torch_file:
        raise StoreError(
            f"{file}: this is a pickle, which can run any program when it is loaded. manytune reads safetensors "
            "only; let its author convert it."
        )
    if file.suffix == _TENSORS:
        try:
            with safetensors.safe_open(file, framework="pt"):
                pass  # its header fits the file, to the byte
        except safetensors.SafetensorError as error:
            raise StoreError(
                f"{file}: not a readable safetensors file; it may have been cut off ({error})."
            ) from None
    elif file.name in (CONFIG_NAME, MANIFEST_NAME) and size > MOST_BYTES:
        raise StoreError(f"{file}: {size:,} bytes; expected at most {MOST_BYTES:,} of JSON.")


def _what_is_there(path: Path) -> str:
    aside = moved_aside(path)
    if aside is not None:
        return f"its replacement was interrupted; rename {aside} to {path.name} to have the former one back"
    if not path.is_dir():
        return "there is no such directory"
    if (inner := adapter_at(path)) != path:
        return f"this is a run; its adapter is in {inner}"
    return "this directory holds no adapter"
