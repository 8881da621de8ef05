"""With little memory left, work is refused with a reason before it begins, and what runs is answered."""

from __future__ import annotations

import resource
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient
from tests.attacks.small_server import ask_of
from tests.engine.adapters import InMemory
from tests.server.world import alone, app_of, fill_store, plain_ids, save_base
from transformers import BertConfig, BertModel

from manytune import free_memory
from manytune.engine.encoder import EncoderEngine, Pooling
from manytune.engine.engine import Engine
from manytune.engine.kv_cache import KVCache
from manytune.engine.options import EngineOptions
from manytune.engine.request import Request, SamplingParams
from manytune.engine.runner import Runner
from manytune.engine.text_runner import TextJob, TextRunner, TextTokens
from manytune.errors import ShortMemoryError
from manytune.methods.lora.config import LoraConfig
from manytune.methods.tuners.terms import Terms, Update
from manytune.server import loop
from manytune.store.base import Base
from manytune.store.cache import AdapterCache
from manytune.store.store import AdapterStore

MIB = 1 << 20


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return save_base(tmp_path_factory.mktemp("served") / "tiny")


@pytest.fixture(scope="module")
def store(base: Base, tmp_path_factory: pytest.TempPathFactory) -> AdapterStore:
    return fill_store(tmp_path_factory.mktemp("adapters"), base)


@pytest.fixture(scope="module")
def server(base: Base, store: AdapterStore) -> Iterator[TestClient]:
    with TestClient(app_of(base, store), base_url="http://localhost") as client:
        yield client


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """30 MiB are left, until it is undone."""
    monkeypatch.setattr(free_memory, "free_memory", lambda: 30 * MIB)
    return monkeypatch


# -- what is free


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        (
            "0::/a/b",
            {
                "a/b/memory.max": "max",
                "a/memory.max": f"{100 * MIB}",
                "a/memory.current": f"{80 * MIB}",
                "a/memory.stat": f"anon 5\ninactive_file {7 * MIB}\n",
            },
            27,
        ),
        (
            "3:cpu:/x\n5:memory,other:/elsewhere",
            {
                "memory/memory.limit_in_bytes": f"{64 * MIB}",
                "memory/memory.usage_in_bytes": f"{60 * MIB}",
                "memory/memory.stat": "total_inactive_file 0\n",
            },
            4,
        ),
        ("0::/a", {"a/memory.max": "max"}, 500),
        ("0::/a", {"a/memory.max": f"{MIB}", "a/memory.current": f"{2 * MIB}", "a/memory.stat": ""}, 0),
        ("0::/gone", {}, 500),
    ],
    ids=["version 2, of the parent", "version 1, in a container", "no limit", "beyond the limit", "no files"],
)
def test_free_memory_is_the_least_that_the_system_and_the_groups_leave(
    cgroup: str, files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in {**files, "self/cgroup": cgroup}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    (tmp_path / "meminfo").write_text(f"MemTotal: 9999999 kB\nMemAvailable: {500 << 10} kB\n")
    monkeypatch.setattr(free_memory, "_SYSTEM", tmp_path / "meminfo")
    monkeypatch.setattr(free_memory, "_SELF", tmp_path / "self")
    monkeypatch.setattr(free_memory, "_GROUPS", tmp_path)
    assert free_memory.free_memory() == expected * MIB


@pytest.mark.parametrize(
    ("error", "is_short"),
    [
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."), True),
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("can't start new thread"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (OSError(2, "No such file"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_memory_that_was_not_given_is_told_from_other_errors(error: Exception, is_short: bool) -> None:
    assert free_memory.is_short_memory(error) == is_short


# -- an engine


def engine_of(base: Base) -> Engine:
    return Engine(base.model, base.tokenizer, EngineOptions(max_batch=8, weights="plain"))


def request(name: str, base: Base, text: str = "abc", tokens: int = 8) -> Request:
    return Request(name, plain_ids(base, text), SamplingParams(tokens, ignore_eos=True))


def test_with_30_mib_of_address_space_left_a_request_is_refused_and_later_answered(
    base: Base, store: AdapterStore
) -> None:
    engine = engine_of(base)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 30 * MIB, before[1]))
    try:
        with pytest.raises(
            ShortMemoryError, match=r"request 'one' needs .* 64 MiB have to stay free; [123]?\d MiB are"
        ):
            engine.submit(request("one", base))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert not engine.busy
    (found,) = engine.generate([request("one", base)])
    assert (
        found.token_ids
        == alone(base, store, None, plain_ids(base, "abc"), max_new_tokens=8, ignore_eos=True).token_ids
    )


def test_a_request_that_waits_until_memory_is_short_ends_by_itself(
    base: Base, short: pytest.MonkeyPatch
) -> None:
    short.undo()
    engine = engine_of(base)
    engine.submit(request("one", base))
    short.setattr(free_memory, "free_memory", lambda: 30 * MIB)
    (last,) = engine.step()
    assert (last.finish_reason, engine.busy) == ("memory", False)
    short.undo()
    assert len(engine.generate([request("one", base)])[0].token_ids) == 8
    engine.check_integrity()


def test_keys_and_values_are_reckoned_as_they_are_written() -> None:
    cache = KVCache(
        layers=2,
        heads=3,
        head_dim=4,
        budget=4096,
        max_rows=4,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    token = 2 * 2 * 3 * 4 * 4
    assert cache.needed(60) == 64 * token
    cache.add("one", 60)
    assert cache.needed(60) == 64 * token  # another row
    assert cache.needed(1000) == 2 * 1024 * token  # wider rows for both
    cache.add("two", 60)
    cache.remove("two")
    assert cache.needed(60) == 0  # its row was written to before


def test_memory_that_runs_out_in_a_step_ends_the_longest_request_alone(
    base: Base, store: AdapterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, forward = engine_of(base), Runner.forward

    def of_few(runner: Runner, decode: Any, chunks: Any) -> Any:
        if len(decode) + len(chunks) > 1:
            raise MemoryError
        return forward(runner, decode, chunks)

    monkeypatch.setattr(Runner, "forward", of_few)
    for one in (request("short", base), request("long", base, "abcdefgh", 20)):
        engine.submit(one)
    ended, tokens = {}, []
    while engine.busy:
        for output in engine.step():
            tokens += [output.token_id] if output.request_id == "short" else []
            ended |= {output.request_id: output.finish_reason} if output.finish_reason else {}
        engine.check_integrity()
    assert ended == {"long": "memory", "short": "length"}
    wanted = alone(base, store, None, plain_ids(base, "abc"), max_new_tokens=8, ignore_eos=True)
    assert tuple(tokens) == wanted.token_ids


def test_whole_answers_are_never_silently_cut_off_by_it(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(Runner, "forward", failing)
    engine = engine_of(base)
    with pytest.raises(ShortMemoryError, match="isn't enough memory to go on"):
        engine.generate([request("one", base)])
    assert not engine.busy


def test_an_encoders_adapter_is_refused_before_it_is_put_into_a_slot(short: pytest.MonkeyPatch) -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    engine = EncoderEngine(BertModel(BertConfig(vocab_size=9, max_position_embeddings=8, **sizes)), Pooling())
    update = Update(torch.eye(2, 8), 9 * torch.eye(8, 2))
    terms = Terms(updates={"encoder.layer.0.attention.self.query": update})
    engine.add_adapter("one", InMemory("1" * 64, LoraConfig(), {}), terms=terms)
    for adapter in ("one", None):
        with pytest.raises(ShortMemoryError, match="a request with texts needs"):
            engine.embed([[1, 2]], adapter)
    left = iter([500 * MIB])
    short.setattr(free_memory, "free_memory", lambda: next(left, 30 * MIB))
    with pytest.raises(ShortMemoryError, match="an adapter that is to run needs"):
        engine.embed([[1, 2]], "one")
    short.undo()
    assert engine.embed([[1, 2]], "one") != engine.embed([[1, 2]])


class Numbers:
    """A model of texts that has no memory for more than four tokens."""

    step_tokens = 512

    def prepare(self, job: TextJob) -> TextJob:
        return job

    def release(self, prepared: TextJob) -> None:
        pass

    def goes_alone(self, prepared: TextJob) -> bool:
        return False

    def run(self, rows: Sequence[tuple[TextJob, TextTokens]]) -> list[list[float]]:
        if sum(len(text.ids) for _, text in rows) > 4:
            raise MemoryError
        return [[float(sum(text.ids))] for _, text in rows]


def test_texts_that_there_is_no_memory_for_fail_alone() -> None:
    runner = TextRunner(Numbers)
    small, large = (TextJob(texts=[TextTokens((1,) * length)]) for length in (3, 7))
    for job in (small, large):
        runner.add(job)
    while runner.busy:
        runner.step()
    assert small.result.result() == [[3.0]]
    assert isinstance(large.result.exception(), ShortMemoryError) and not runner.jobs


# -- a server


@pytest.mark.parametrize("model", ["base", "two"])
@pytest.mark.parametrize("streams", [False, True])
def test_a_server_answers_503_with_the_reason_and_then_goes_on(
    model: str, streams: bool, server: TestClient, short: pytest.MonkeyPatch
) -> None:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "a"}],
        "max_tokens": 2,
        "stream": streams,
    }
    response = server.post("/v1/chat/completions", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["code"], response.headers["retry-after"]) == (
        503,
        "out_of_memory",
        "5",
    )
    assert "64 MiB have to stay free; 30 MiB are" in error["message"]
    assert server.get("/healthz").status_code == 200
    assert model in [
        one["id"] for one in server.get("/v1/models").json()["data"]
    ]  # it isn't the adapter's fault
    short.undo()
    assert ask_of(server, model)[0] == 200


def test_what_a_request_does_between_steps_fails_alone() -> None:
    def run(_: Any) -> None:
        raise MemoryError

    result: Future[Any] = Future()
    loop._call(loop._Call(run, result), engine=None)  # type: ignore[arg-type]
    assert isinstance(result.exception(), ShortMemoryError)


# -- adapters in memory


def test_adapters_that_are_not_in_use_make_room_for_others(
    store: AdapterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = AdapterCache(store, budget=MIB)
    one, two = cache.pin("one"), store.resolve("two")
    monkeypatch.setattr(free_memory, "free_memory", lambda: 0)
    with pytest.raises(ShortMemoryError, match="reading the adapter needs"):
        cache.get("two")  # what there is, is in use
    assert cache.resident == (one.digest,)
    cache.unpin(one)
    left = iter([0])
    monkeypatch.setattr(free_memory, "free_memory", lambda: next(left, 500 * MIB))
    assert cache.get("two").digest == two
    assert (cache.resident, cache.counters().evictions) == ((two,), 1)
