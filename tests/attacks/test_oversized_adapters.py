"""An adapter that would take more memory than one may is refused by its shapes; what fails nevertheless fails alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient
from tests.attacks.small_server import ask_of
from tests.server.world import alone, plain_ids, save_base
from tests.store.adapters_made import make_adapter
from torch import Tensor

import manytune.free_memory
from manytune.engine.engine import Engine
from manytune.engine.options import EngineOptions
from manytune.engine.request import Request, SamplingParams
from manytune.errors import OversizedAdapterError
from manytune.methods.tuners.terms import Factors, ParameterUpdate, Terms, Update
from manytune.mixed import updates
from manytune.mixed.memory_estimate import AdapterLimit, running_bytes
from manytune.mixed.stacks import AdapterStacks, snapshot_of
from manytune.mixed.updates import Product, UpdateStack
from manytune.server.app import create_app
from manytune.server.settings import Settings
from manytune.store import servability
from manytune.store.base import Base
from manytune.store.resident import read_resident
from manytune.store.store import AdapterStore

CPU = torch.device("cpu")
NOT_GIVEN = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes."


def of_shape(*shape: int) -> Tensor:
    """A tensor of any size that takes no memory."""
    return torch.zeros(1).expand(shape)


def low_rank(rank: int, size: int = 576) -> Update:
    return Update(of_shape(rank, size), of_shape(size, rank))


def at(layer: int, name: str = "self_attn.q_proj") -> str:
    return f"model.layers.{layer}.{name}"


ATTACKS = {
    "a rank on one layer": Terms(updates={at(0): low_rank(2**21 + 1)}),
    "one rank of many layers": Terms(
        updates={**{at(i): low_rank(4) for i in range(1, 100)}, at(0): low_rank(2**14)}
    ),
    "a rank on experts": Terms(
        parameters={"model.layers.0.experts.up": ParameterUpdate(of_shape(4096, 256, 576), of_shape(4096, 576, 256))}
    ),
    "a rank on a router": Terms(
        parameters={"model.layers.0.gate.weight": ParameterUpdate(of_shape(2**20, 576), of_shape(64, 2**20))}
    ),
    "a bottleneck": Terms(updates={at(0, "mlp.down_proj"): low_rank(2**19)}, activation="gelu", reads_output=True),
    "a table of its own": Terms(updates={"lm_head": Update(None, of_shape(2**20, 576))}),
    "rows of tokens": Terms(updates={"model.embed_tokens": replace(low_rank(2**19), lookup=True)}),
    "factors": Terms(factors={at(i): Factors(of_shape(2**20), of_shape(2**20)) for i in range(100)}),
    "virtual tokens": Terms(embeddings=of_shape(10**6, 576)),
    "keys and values": Terms(prefix=of_shape(30, 2, 3, 10**6, 64)),
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(ATTACKS))
def test_what_would_take_gigabytes_is_refused_by_its_shapes(kind: str) -> None:
    limit = AdapterLimit(nbytes=1 << 30, tokens=544, virtual_tokens=8191)
    with pytest.raises(OversizedAdapterError, match=r"may take|room for at most 8,191"):
        limit.check(ATTACKS[kind], torch.float32)


def test_usual_adapters_are_far_below_the_limit() -> None:
    names = {"self_attn.q_proj": 576, "self_attn.v_proj": 192, "mlp.down_proj": 576}
    usual = {
        at(i, name): Update(of_shape(64, 576), of_shape(out, 64))
        for i in range(30)
        for name, out in names.items()
    }
    AdapterLimit(nbytes=1 << 30, tokens=544, virtual_tokens=8191).check(Terms(updates=usual), torch.float32)


@pytest.mark.parametrize(
    "terms",
    [
        Terms(updates={at(i, f"self_attn.{n}_proj"): low_rank(5 + i, 8) for i in range(3) for n in "qkv"}),
        Terms(
            updates={at(0): Update(of_shape(3, 8), of_shape(6, 3), 1.0, of_shape(3), of_shape(6))},
            activation="relu",
        ),
        Terms(updates={"lm_head": Update(None, of_shape(20, 8)), at(1): low_rank(3, 8)}),
    ],
    ids=["layers of several ranks", "biases", "a whole weight"],
)  # fmt: skip
def test_what_is_reckoned_is_what_a_slot_takes(terms: Terms) -> None:
    snapshot, stacks = snapshot_of("one", terms, torch.float32), AdapterStacks(CPU)
    reckoned = stacks.needed(snapshot)
    stacks.acquire(snapshot)
    slots = {
        shape: stacks._updates[shape].nbytes // stacks._updates[shape]._capacity for shape in snapshot.updates
    }
    assert reckoned == sum(slots.values())
    assert running_bytes(terms, torch.float32, tokens=0) == reckoned + max(slots.values())
    assert stacks.needed(snapshot) == 0


def test_large_slots_are_few_from_the_beginning() -> None:
    small, large = Terms(updates={at(0): low_rank(8)}), Terms(updates={at(0): low_rank(2**16)})
    sizes = []
    for terms in (small, large):
        (shape,) = snapshot_of("one", terms, torch.float32).updates
        sizes.append(updates._first_slots(shape, CPU))
    assert sizes == [32, 1]  # of 36 KB and of 302 MB; two take more than half a gigabyte


# -- an engine


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return save_base(tmp_path_factory.mktemp("served") / "tiny")


@pytest.fixture(scope="module")
def store(base: Base, tmp_path_factory: pytest.TempPathFactory) -> AdapterStore:
    """`one` is small, `big` has a rank of 1,500 at one of its layers, and so a slot of 2,048 at each."""
    root = tmp_path_factory.mktemp("adapters")
    store = AdapterStore(root / "store")
    store.add(make_adapter(root / "one", base), name="one")
    big = make_adapter(root / "big", base, seed=1, rank_pattern={"layers.0.self_attn.q_proj": 1500})
    store.add(big, name="big")
    return store


def engine_of(base: Base, store: AdapterStore, *names: str, **options: Any) -> Engine:
    engine = Engine(base.model, base.tokenizer, EngineOptions(max_batch=8, weights="plain", **options))
    for name in names:
        engine.add_adapter(name, read_resident(store.path(name)))
    return engine


def answers(
    engine: Engine, base: Base, *models: str | None
) -> dict[str | None, tuple[str | None, list[int]]]:
    """Why each answer ended, and its tokens, of requests that run at once."""
    for model in models:
        engine.submit(Request(str(model), plain_ids(base, "abc"), SamplingParams(8, ignore_eos=True), model))
    found: dict[str, tuple[str | None, list[int]]] = {str(model): (None, []) for model in models}
    while engine.busy:
        for output in engine.step():
            tokens = found[output.request_id][1] + ([] if output.token_id is None else [output.token_id])
            found[output.request_id] = output.finish_reason, tokens
        engine.check_integrity()
    return {model: found[str(model)] for model in models}


def expected(base: Base, store: AdapterStore, model: str | None) -> tuple[str, list[int]]:
    found = alone(base, store, model, plain_ids(base, "abc"), max_new_tokens=8, ignore_eos=True)
    return found.finish_reason, list(found.token_ids)


def test_an_engine_refuses_it_by_name_and_runs_the_others(base: Base, store: AdapterStore) -> None:
    engine = engine_of(base, store, "one", adapter_bytes=1 << 20)
    with pytest.raises(OversizedAdapterError, match="largest rank is 1,500"):
        engine.add_adapter("big", read_resident(store.path("big")))
    assert answers(engine, base, "one", None) == {m: expected(base, store, m) for m in ("one", None)}


def fail(*_: Any, **__: Any) -> Any:
    raise RuntimeError(NOT_GIVEN)


@pytest.mark.parametrize("where", ["its slot", "a product", "Python"])
def test_memory_that_is_not_given_in_a_step_ends_the_requests_of_the_largest_alone(
    where: str, base: Base, store: AdapterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(base, store, "one", "big")
    grow, add = UpdateStack._grow, Product.add

    def grown(stack: UpdateStack, capacity: int) -> None:
        return fail() if stack.shape.rank == 2048 else grow(stack, capacity)

    def added(product: Product, z: Tensor, y: Tensor) -> None:
        if product.stack.shape.rank != 2048:
            return add(product, z, y)
        if where == "Python":
            raise MemoryError
        return fail()

    monkeypatch.setattr(UpdateStack, "_grow", grown) if where == "its slot" else monkeypatch.setattr(
        Product, "add", added
    )
    found = answers(engine, base, "one", "big", None)
    assert found.pop("big") == ("memory", [])
    assert found == {model: expected(base, store, model) for model in ("one", None)}
    monkeypatch.undo()
    assert answers(engine, base, "big", "one") == {m: expected(base, store, m) for m in ("big", "one")}


def test_a_slot_of_terabytes_that_the_system_refuses_ends_one_request(
    base: Base, store: AdapterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manytune.free_memory, "free_memory", lambda: None)  # a system that doesn't say
    engine = engine_of(base, store, "one", adapter_bytes=1 << 60)
    huge = Terms(updates={at(0): low_rank(2**42, 16)})
    engine.add_adapter("huge", replace(read_resident(store.path("one")), digest="0" * 64), terms=huge)
    found = answers(engine, base, "huge", "one")
    assert found == {"huge": ("memory", []), "one": expected(base, store, "one")}


def test_a_stack_that_cannot_grow_keeps_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updates, "_MOST_FIRST_BYTES", 0)  # room for one
    stacks = AdapterStacks(CPU)
    one, other = (
        snapshot_of(name, Terms(updates={at(0): Update(torch.full((2, 8), v), torch.full((8, 2), v))}), torch.float32)
        for name, v in (("one", 1.0), ("other", 2.0))
    )  # fmt: skip
    stacks.acquire(one)
    (stack,) = stacks._updates.values()
    before = {key: tensor[0].clone() for key, tensor in stack._tensors.items()}
    with monkeypatch.context() as short:
        short.setattr(torch, "empty", fail)
        with pytest.raises(RuntimeError, match="can't allocate"):
            stacks.acquire(other)
    assert stacks.held == 1 and all(torch.equal(stack._tensors[key][0], kept) for key, kept in before.items())
    stacks.acquire(other)
    assert stacks.held == 2 and all(torch.equal(stack._tensors[key][0], kept) for key, kept in before.items())


# -- a server, and a store


@pytest.fixture(scope="module")
def server(base: Base, store: AdapterStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    made = make_adapter(tmp_path_factory.mktemp("vera") / "vera", base, method="vera", r=4)
    config = json.loads((made / "adapter_config.json").read_text())
    (made / "adapter_config.json").write_text(json.dumps(config | {"r": 10**10}))
    (made / "manifest.json").unlink()
    with pytest.MonkeyPatch.context() as elsewhere:  # where nobody looked at what it says
        elsewhere.setattr("manytune.store.servability.why_not_served", lambda *_, **__: None)
        store.add(made, name="vera", base=base)
    options = EngineOptions(max_batch=8, weights="plain", adapter_bytes=1 << 20)
    app = create_app(base, store, Settings(base_name="base", watch_seconds=3600.0), None, options)
    with TestClient(app, base_url="http://localhost") as client:
        yield client


@pytest.mark.parametrize(("name", "said"), [("big", "largest rank is 1,500"), ("vera", "r=10,000,000,000")])
def test_a_server_refuses_it_with_the_reason_and_does_not_list_it(
    name: str, said: str, server: TestClient
) -> None:
    before = ask_of(server, "one")
    assert before[0] == 200
    assert name not in [model["id"] for model in server.get("/v1/models").json()["data"]]
    for _ in range(2):
        status, body = ask_of(server, name)
        assert (
            status == 409 and body["error"]["code"] == "adapter_unusable" and said in body["error"]["message"]
        )
    assert ask_of(server, "one") == before


def test_the_store_notes_the_reason_when_it_is_added(
    base: Base, store: AdapterStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servability, "bytes_for_one", lambda _: 1 << 20)
    added = AdapterStore(tmp_path / "store")
    assert added.add(store.path("one"), base=base).manifest.unservable is None
    reason = added.add(store.path("big"), base=base).manifest.unservable
    assert reason is not None and "one adapter may take 1 MiB" in reason
