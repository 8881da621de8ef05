"""Where rows came from, as reports state it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from manytune.store.digests import sha256_file


def describe_sources(sources: Iterable[str]) -> str:
    """The files and `datasets` names that rows came from, each once, and with its SHA-256 if it is a file here."""
    described = []
    for source in dict.fromkeys(sources):
        path = Path(source).expanduser()
        described.append(f"{source} (SHA-256 {sha256_file(path)})" if path.is_file() else source)
    return ", ".join(described)
