from __future__ import annotations

import pytest
from tests.store.tiny import save_tiny_base

from manytune.store.base import Base, load_base


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return load_base(str(save_tiny_base(tmp_path_factory.mktemp("base") / "tiny")))
