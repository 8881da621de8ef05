from __future__ import annotations

from pathlib import Path

import pytest

from manytune.caches import cache_directory


def test_the_cache_is_where_the_variable_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MANYTUNE_CACHE", str(tmp_path))
    assert cache_directory() == tmp_path
    monkeypatch.delenv("MANYTUNE_CACHE")
    assert cache_directory() == Path.home() / ".cache" / "manytune"
