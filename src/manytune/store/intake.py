"""From wherever an adapter is to a directory with all that a store keeps of it."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path

import safetensors

from manytune import __version__
from manytune.errors import ManytuneError, StoreError
from manytune.methods.checkpoint.format import TENSORS_NAME
from manytune.methods.config import PeftConfig
from manytune.methods.registry import method_of
from manytune.store.adapters import CONFIG_NAME, open_adapter
from manytune.store.base import Base
from manytune.store.files import sha256_file
from manytune.store.manifest import MANIFEST_NAME, Manifest
from manytune.store.run_directory import adapter_at

_CARD = "README.md"
_ID = re.compile(rb"[0-9a-f]{64}")


def gather(source: Path, target: Path, base: Base | None = None) -> Manifest:
    """Copy an adapter's files, check the copies, and see that they have a manifest.

    Args:
        source: A run, an adapter's directory, or a checkpoint of HF PEFT.
        target: An existing directory that takes the files.
        base: The base that the adapter was trained on. It is checked; a checkpoint of HF PEFT, which doesn't say what
            its base looked like, needs it for its manifest.

    Raises:
        StoreError: There is no whole adapter, or a checkpoint of HF PEFT comes without its base.
        BaseMismatchError: The adapter was trained on another base.
        ConfigError: Its options are none that manytune implements.
    """
    origin = adapter_at(source)
    stored = open_adapter(origin, base=base)
    if stored.manifest is not None:
        names = list(stored.manifest.files)
    else:
        names = [CONFIG_NAME, TENSORS_NAME]
        if not (origin / TENSORS_NAME).is_file():
            raise StoreError(
                f"{origin}: expected the adapter's tensors in {TENSORS_NAME}; there is no such file."
            )
    for name in [*names, *([_CARD] if (origin / _CARD).is_file() else [])]:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(origin / name, target / name)
    files = {name: sha256_file(target / name) for name in names}
    config = _readable(origin, target)
    if stored.manifest is None:
        manifest = _manifest_for(origin, config, files, base)
    elif files != dict(stored.manifest.files):
        raise StoreError(f"{origin}: the adapter was changed while it was being copied. Add it again.")
    else:
        manifest = stored.manifest
    (target / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def content_id_in(file: Path) -> str | None:
    """The content hash that a file holds; None if there is no such file, or something else in it."""
    if not file.is_file():
        return None
    try:
        with file.open("rb") as opened:
            content = opened.read(65)
    except FileNotFoundError:  # another process took it back meanwhile
        return None
    return content.decode() if _ID.fullmatch(content) else None


def content_id(manifest: Manifest) -> str:
    """What an adapter is called for its content: a SHA-256, in hexadecimal digits.

    It covers all that decides an answer: the files, the base, and how prompts are made. Scores, the recipe and the date
    describe the adapter and don't change what it is.
    """
    content = [
        dict(manifest.files),
        manifest.fingerprint.to_dict(),
        dict(manifest.template) if manifest.template is not None else None,
        {task: dict(parts) for task, parts in (manifest.templates or {}).items()},
        manifest.encoding,
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _readable(origin: Path, target: Path) -> PeftConfig:
    """The options, if they and the tensors can be read."""
    try:
        with safetensors.safe_open(target / TENSORS_NAME, framework="pt") as opened:
            opened.keys()
    except (safetensors.SafetensorError, OSError) as error:
        raise StoreError(f"{origin / TENSORS_NAME}: not a readable safetensors file ({error}).") from None
    try:
        return PeftConfig.from_pretrained(target)
    except ManytuneError as error:
        raise type(error)(f"{origin / CONFIG_NAME}: {error}") from None
    except Exception as error:  # options may hold values of any kind
        raise StoreError(f"{origin / CONFIG_NAME}: {error}") from error


def _manifest_for(origin: Path, config: PeftConfig, files: dict[str, str], base: Base | None) -> Manifest:
    if base is None:
        named = (
            f", which it calls {config.base_model_name_or_path!r}" if config.base_model_name_or_path else ""
        )
        raise StoreError(
            f"{origin}: a checkpoint of HF PEFT doesn't say what its base looked like. Give the base{named}, so that "
            "the adapter never runs on another one unnoticed."
        )
    return Manifest(
        method=method_of(config).name,
        base=base.name,
        fingerprint=base.fingerprint,
        template=None,
        encoding=None,
        recipe=None,
        scores={},
        files=files,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        manytune=__version__,
    )
