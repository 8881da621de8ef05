"""Adapters on experts and routers over HTTP: they share a server's batches, each answering as it does alone."""

from pathlib import Path

import pytest
from starlette.testclient import TestClient
from tests.integration.test_every_method_over_http import require_equal_answers
from tests.server.world import app_of
from tests.store.adapters_made import make_adapter
from tests.store.tiny import save_tiny_mixture

from manytune.store.base import Base, load_base
from manytune.store.store import AdapterStore

EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]
ADAPTERS = {
    "experts": {"target_modules": [], "target_parameters": EXPERTS},
    "router": {"target_modules": [], "target_parameters": ["gate.weight"]},
    "everything": {"target_modules": ["q_proj"], "target_parameters": [*EXPERTS, "gate.weight"], "r": 3},
    "linear": {"target_modules": ["q_proj", "o_proj"]},
}


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return load_base(str(save_tiny_mixture(tmp_path_factory.mktemp("mixture") / "base")))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, mixture: Base) -> AdapterStore:
    directory = tmp_path_factory.mktemp("adapters")
    kept = AdapterStore(directory / "store")
    for seed, (name, options) in enumerate(ADAPTERS.items()):
        kept.add(make_adapter(directory / name, mixture, seed=seed, **options), name=name)
    return kept


def test_adapters_on_experts_in_one_batch_answer_over_http_as_they_do_alone(
    mixture: Base, store: AdapterStore
) -> None:
    with TestClient(app_of(mixture, store), base_url="http://127.0.0.1") as client:
        listed = {one["id"] for one in client.get("/v1/models").json()["data"]}
        assert listed == {"base", *ADAPTERS}
        found = require_equal_answers(client, mixture, store, ADAPTERS, ("abc", "hello", "q"))
    assert len(found) > len(ADAPTERS)


def test_a_store_says_that_such_adapters_can_be_served(
    mixture: Base, store: AdapterStore, tmp_path: Path
) -> None:
    from manytune.store.servability import why_not_served

    assert all(why_not_served(Path(store.path(name)), mixture.model) is None for name in ADAPTERS)
