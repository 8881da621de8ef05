"""An adapter in memory: its options, and its tensors, which are those that were compared with its manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from manytune.errors import DamagedError
from manytune.methods.checkpoint.format import TENSORS_NAME
from manytune.methods.config import CONFIG_NAME, PeftConfig
from manytune.store.adapters import check_base, open_adapter
from manytune.store.digests import digest_of, sha256_file
from manytune.store.fingerprint import Fingerprint
from manytune.store.manifest import Manifest
from manytune.store.tensors_in_memory import TensorsInMemory


@dataclass(frozen=True)
class ResidentAdapter:
    """An adapter that is ready to run. Nothing in it may be changed: others hold the same one.

    Attributes:
        digest: Identifies its content. Equal digests mean equal answers on the same base.
        config: Its options.
        tensors: Its tensors by their names in HF PEFT's file, in their own dtype.
        nbytes: What its tensors take in memory, with their names.
        manifest: What it says about itself, the prompt template included; None for a checkpoint of HF PEFT that is in
            no store.
    """

    digest: str
    config: PeftConfig
    tensors: Mapping[str, Tensor]
    nbytes: int
    manifest: Manifest | None

    @property
    def templates(self) -> Mapping[str | None, Mapping[str, str]]:
        """The parts of the prompt template of each task; a single task's are under None."""
        return {} if self.manifest is None else self.manifest.templates_by_task


class _Hashes:
    """The SHA-256 of files. The file of tensors stays in memory, so that what is used is what was hashed."""

    def __init__(self, tensors: Path) -> None:
        self._file = tensors
        self.tensors: TensorsInMemory | None = None

    def __call__(self, file: Path) -> str:
        if file != self._file:
            return sha256_file(file)
        state = hashlib.sha256()
        self.tensors = TensorsInMemory(file, state)
        return state.hexdigest()


def read_resident(directory: str | Path, *, fingerprint: Fingerprint | None = None) -> ResidentAdapter:
    """Read an adapter into memory, and check it against its manifest.

    Args:
        directory: The adapter's directory.
        fingerprint: The base that it is to run on; None leaves that to the caller.

    Raises:
        StoreError: The directory holds no adapter.
        DamagedError: It holds a damaged one.
        BaseMismatchError: The adapter was trained on another base.
        ShortMemoryError: There isn't enough memory for it now.
    """
    path = Path(directory).expanduser()
    hashes = _Hashes(path / TENSORS_NAME)
    stored = open_adapter(path, sha256=hashes)
    manifest, tensors = stored.manifest, hashes.tensors
    config_file = path / CONFIG_NAME
    config_hash = sha256_file(config_file)
    if manifest is not None:
        if fingerprint is not None:
            check_base(path, manifest, fingerprint)
        digest = digest_of(manifest)
        expected = manifest.files[CONFIG_NAME]
    else:
        state = hashlib.sha256(config_file.read_bytes())
        tensors = TensorsInMemory(path / TENSORS_NAME, state)
        digest, expected = state.hexdigest(), config_hash
    config = PeftConfig.from_pretrained(path)
    if not config_hash == expected == sha256_file(config_file):
        raise DamagedError(f"{config_file}: the file was changed while it was read. Add the adapter again.")
    if tensors is None:
        tensors = TensorsInMemory(path / TENSORS_NAME)
    return ResidentAdapter(digest, config, tensors, tensors.nbytes, manifest)
