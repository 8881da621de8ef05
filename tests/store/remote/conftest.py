from __future__ import annotations

import secrets
from pathlib import Path

import pytest
from tests.store.adapters_made import make_adapter

from manytune.store.base import Base


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANYTUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def url() -> str:
    """A prefix of fsspec's storage in memory that no other test uses."""
    return f"memory://bucket-{secrets.token_hex(4)}/adapters"


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory, tiny_base: Base) -> list[Path]:
    """Two adapters in directories, as runs leave them."""
    folder = tmp_path_factory.mktemp("sources")
    return [make_adapter(folder / f"adapter-{seed}", tiny_base, seed=seed) for seed in range(2)]
