from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from tests.server.api_client import ROOT, ROOT_HEADERS
from tests.server.world import app_of, fill_store, save_base

from manytune.server.access.auth import Keys
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


@pytest.fixture
def own_store(base: Base, tmp_path: Path) -> AdapterStore:
    """A store for one test."""
    return fill_store(tmp_path, base)


@pytest.fixture
def admin(base: Base, own_store: AdapterStore) -> Iterator[TestClient]:
    """A client with an admin key, of a server with a store of its own."""
    with TestClient(app_of(base, own_store, Keys([ROOT])), headers=ROOT_HEADERS) as client:
        yield client
