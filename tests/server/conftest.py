from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient
from tests.server.world import app_of, fill_store, save_base

from manytune.store.base import Base
from manytune.store.store import AdapterStore


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return save_base(tmp_path_factory.mktemp("served") / "tiny")


@pytest.fixture(scope="session")
def store(base: Base, tmp_path_factory: pytest.TempPathFactory) -> AdapterStore:
    """Tests that change a store make their own."""
    return fill_store(tmp_path_factory.mktemp("adapters"), base)


@pytest.fixture(scope="module")
def client(base: Base, store: AdapterStore) -> Iterator[TestClient]:
    with TestClient(app_of(base, store), base_url="http://localhost") as client:
        yield client
