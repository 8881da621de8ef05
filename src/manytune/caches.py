"""Where manytune keeps what it can make again: converted bases, compiled kernels."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory() -> Path:
    """`MANYTUNE_CACHE`, or `~/.cache/manytune`."""
    configured = os.environ.get("MANYTUNE_CACHE")
    return Path(configured) if configured else Path.home() / ".cache" / "manytune"
