"""Finding 6: nobody waits for the end of a long list of texts to embed, classify or score; it ends with its client."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine.test_classifier import made
from tests.server.live import live, until
from tests.server.routes.test_embeddings import save_encoder
from tests.server.world import app_of
from tests.training.tiny_classifiers import save_base as save_classifier_base

from manytune.engine.classifier import Classifier
from manytune.engine.encoder import EncoderEngine, Pooling
from manytune.engine.engine import Engine
from manytune.engine.request import Request, SamplingParams
from manytune.engine.text_queue import TextQueue
from manytune.engine.text_runner import TextJob, TextRunner, TextTokens
from manytune.errors import RequestError
from manytune.store.base import Base, load_base
from manytune.store.servability import served_terms
from manytune.store.store import AdapterStore


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return load_base(str(save_encoder(tmp_path_factory.mktemp("fair") / "bert")))


def batches(queue: TextQueue[str], most: int) -> Iterator[list[tuple[str, int]]]:
    while queue.busy:
        yield queue.next_batch(most)


# -- the queue alone: which texts a forward reads


@pytest.mark.parametrize("lengths", [[16] * 100, [1] * 500, [64, 1] * 50, [300], list(range(1, 80))])
def test_a_step_reads_no_more_than_it_may(lengths: list[int]) -> None:
    queue: TextQueue[str] = TextQueue()
    queue.add("job", lengths, tenant="a")
    found = list(batches(queue, 128))
    for batch in found:
        width = max(lengths[number] for _, number in batch)
        assert len(batch) * width <= 128 or len(batch) == 1
    assert sorted(number for batch in found for _, number in batch) == list(range(len(lengths)))


@pytest.mark.parametrize(
    ("tenant", "latest"), [("other", 2), ("same", 2)], ids=["another tenant", "another request of it"]
)
def test_a_short_request_is_not_behind_a_long_list(tenant: str, latest: int) -> None:
    queue: TextQueue[str] = TextQueue()
    queue.add("long", [16] * 2048, tenant="same")
    queue.next_batch(128)
    queue.add("short", [16, 16], tenant=tenant)
    seen = [queue.next_batch(128) for _ in range(latest)]
    assert {number for batch in seen for job, number in batch if job == "short"} == {0, 1}


def test_tenants_get_equal_shares_whatever_their_requests() -> None:
    queue: TextQueue[str] = TextQueue()
    for number in range(20):
        queue.add(f"many {number}", [8] * 50, tenant="many")
    queue.add("one", [8] * 50, tenant="one")
    read = {"many": 0, "one": 0}
    for _ in range(4):
        for job, _ in queue.next_batch(128):
            read["one" if job == "one" else "many"] += 1
    assert abs(read["many"] - read["one"]) <= 1


def test_who_was_away_gains_no_advantage() -> None:
    queue: TextQueue[str] = TextQueue()
    queue.add("early", [8] * 1000, tenant="early")
    for _ in range(10):
        queue.next_batch(128)
    queue.add("late", [8] * 1000, tenant="late")
    read = [job for _ in range(10) for job, _ in queue.next_batch(128)]
    assert abs(read.count("early") - read.count("late")) <= 1


def test_what_is_removed_is_read_no_more_and_long_texts_do_not_pad_short_ones() -> None:
    queue: TextQueue[str] = TextQueue()
    queue.add("gone", [8] * 100, tenant="a")
    queue.add("mixed", [100, 1, 1], tenant="b")
    queue.remove("gone")
    assert list(batches(queue, 512)) == [[("mixed", 0)], [("mixed", 2), ("mixed", 1)]]


# -- the runner: results, errors, cancellation


def test_texts_of_many_requests_share_steps_and_each_gets_its_own(encoder: Base) -> None:
    engine = EncoderEngine(encoder.model, Pooling())
    runner = TextRunner(lambda: engine)
    texts: list[list[tuple[int, ...]]] = [[(2, 4, 3), (2, 5, 6, 7, 3)], [(2, 8, 3)], [(2, 4, 3)] * 200]
    jobs = [TextJob(texts=[TextTokens(ids) for ids in one], tenant=str(n)) for n, one in enumerate(texts)]
    for job in jobs:
        runner.add(job)
    runner.step()
    assert [job.result.done() for job in jobs] == [True, True, False]
    while runner.busy:
        runner.step()
    alone = {ids: engine.embed([ids])[0] for one in texts for ids in set(one)}
    for one, job in zip(texts, jobs, strict=True):
        expected = torch.tensor([alone[ids] for ids in one])
        torch.testing.assert_close(torch.tensor(job.result.result()), expected, atol=1e-5, rtol=0)
    assert not runner.jobs and engine.counters().adapters_in_slots == 0


def test_a_request_that_cannot_be_read_has_its_error_alone(encoder: Base) -> None:
    runner = TextRunner(lambda: EncoderEngine(encoder.model, Pooling()))
    good, bad, gone = (TextJob(texts=[TextTokens(ids)] * 3) for ids in ((2, 3), (999,), (2, 4, 3)))
    for job in (good, bad, gone):
        runner.add(job)
    runner.forget(gone)
    runner.forget(gone)
    runner.step()
    assert isinstance(bad.result.exception(), RequestError) and len(good.result.result()) == 3
    assert not gone.result.done() and not runner.busy and not runner.jobs


def test_classifiers_take_turns_too_and_what_is_forgotten_is_read_no_further(tmp_path: Path) -> None:
    base = load_base(str(save_classifier_base("bert", tmp_path / "base")))
    adapter = made(tmp_path, base, "lora")
    runner = TextRunner(lambda: Classifier(base.model, pad_id=1))
    terms = served_terms(adapter, base.model)
    long, short, other = (
        TextJob(texts=[TextTokens((0, 7, 8, 2))] * count, adapter=adapter, terms=terms, tenant=tenant)
        for count, tenant in ((2048, "a"), (1, "b"), (1, "a"))
    )
    runner.add(long)
    runner.step()
    for job in (short, other):
        runner.add(job)
        runner.step()
        runner.step()
        assert job.result.done()
    assert not long.result.done()
    runner.forget(long)
    assert not runner.busy and not runner.jobs


# -- over HTTP


class Gate:
    """Lets the encoder's forwards through one by one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open: Future[None] = Future()
        self.rows: list[int] = []
        plain = EncoderEngine.run

        def run(engine: EncoderEngine, rows: Sequence[Any]) -> list[list[float]]:
            self.rows.append(len(rows))
            if len(self.rows) == 1:
                self.open.result(60)
            return plain(engine, rows)

        monkeypatch.setattr(EncoderEngine, "run", run)


def test_others_are_answered_before_a_long_list_ends_and_a_client_that_hangs_up_ends_it(
    encoder: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    app = app_of(encoder, AdapterStore(tmp_path / "store"))
    service = app.state.service
    with live(app) as server:
        connection = _send(
            server.port, "/v1/embeddings", {"model": "base", "input": [[2, 4, 5, 3] * 4] * 2048}
        )
        until(lambda: gate.rows)
        short = _send(server.port, "/v1/embeddings", {"model": "base", "input": "a b"})
        until(lambda: service.loop.open_requests == 2)
        gate.open.set_result(None)
        assert b"200 OK" in short.recv(100)
        assert service.loop.open_requests >= 1  # the long one, whose 2,048 texts take 64 steps
        connection.close()
        short.close()
        until(lambda: service.loop.open_requests == 0)
        until(lambda: not service.embedder.jobs)
        until(lambda: 'outcome="cancelled"' in service.metrics.text().decode())
    assert sum(gate.rows) < 2048


def _send(port: int, path: str, body: dict[str, Any]) -> Any:
    import socket

    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    return connection


# -- scoring


def test_a_long_prompt_to_score_is_read_in_chunks_and_others_come_between(base: Base) -> None:
    from manytune.engine.options import EngineOptions

    engine = Engine(base.model, base.tokenizer, EngineOptions(prefill_chunk=8, weights="plain"))
    scored = SamplingParams(max_new_tokens=0, prompt_logprobs=0)
    engine.submit(Request("long", (4,) * 60, scored, tenant="a"))
    engine.step()
    engine.submit(Request("short", (5, 6), SamplingParams(max_new_tokens=1), tenant="b"))
    # Level with the long one's tenant at first, it is read in one of two steps.
    assert [output.request_id for _ in range(2) for output in engine.step()] == ["short"]
    assert engine.cancel("long") is not None and not engine.busy
