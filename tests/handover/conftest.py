from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from tests.handover.fake_vllm import FakeVllm, listening
from tests.server.api_client import ROOT, ROOT_HEADERS
from tests.server.world import fill_store, save_base

from manytune.handover.adapter_prompts import AdapterPrompts
from manytune.handover.app import create_front
from manytune.handover.front import FrontSettings
from manytune.handover.versions import Versions
from manytune.handover.vllm_client import VllmClient
from manytune.handover.vllm_rules import VllmVerdicts
from manytune.server.access.auth import Keys
from manytune.store.base import Base
from manytune.store.store import AdapterStore


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return save_base(tmp_path_factory.mktemp("handover") / "tiny")


@pytest.fixture
def store(base: Base, tmp_path: Path) -> AdapterStore:
    return fill_store(tmp_path, base)


@pytest.fixture
def fake(base: Base) -> FakeVllm:
    return FakeVllm(base.tokenizer)


class Front:
    """An application before the fake.

    Attributes:
        app: The application.
        versions: Its versions.
        copies: The directory of the resolver.
    """

    def __init__(self, base: Base, store: AdapterStore, socket: Path, copies: Path, keys: Keys) -> None:
        client = VllmClient(socket)
        self.copies = copies
        self.verdicts = VllmVerdicts(store, base, patterns=True)
        self.verdicts.most_rank = 8
        self.versions = Versions(
            store,
            self.verdicts,
            AdapterPrompts(base),
            client,
            copies=copies,
            location="the base",
            base_name="base",
        )
        settings = FrontSettings(base_name="base", of_tenant=4, answer_tokens=40, watch_seconds=3600)
        self.app = create_front(settings, self.versions, client, keys)

    def check(self, client: TestClient) -> dict[str, list[str]]:
        """Have it look at the store now."""
        return client.post("/v1/adapters/reload").json()["changed"]


@pytest.fixture
def socket(fake: FakeVllm) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own have names too long for a socket
        path = Path(folder, "socket")
        with listening(fake, path):
            yield path


@pytest.fixture
def front(base: Base, store: AdapterStore, socket: Path, tmp_path: Path) -> Front:
    return Front(base, store, socket, tmp_path / "copies", Keys([ROOT]))


@pytest.fixture
def client(front: Front) -> Iterator[TestClient]:
    with TestClient(front.app, headers=ROOT_HEADERS, raise_server_exceptions=False) as client:
        yield client
