"""A running server: clients disconnect, the queue fills, new versions arrive, the engine fails, the server stops."""

import asyncio
import json
import socket
import time

import pytest
from tests.server.live import events_of, live, until
from tests.server.world import alone, app_of, fill_store, new_version, plain_ids

from manytune.engine.engine import Engine
from manytune.server.http_errors import HttpError

# No end token: answers are as long as they may be.
LONG = {"temperature": 0, "max_tokens": 40, "stream": True, "logit_bias": {"0": -100}}


def long(model, text="a", **more):
    return {"model": model, "messages": [{"role": "user", "content": text}], **LONG, **more}


@pytest.fixture
def slow_steps(monkeypatch):
    step = Engine.step

    def slow(engine):
        time.sleep(0.02)
        return step(engine)

    monkeypatch.setattr(Engine, "step", slow)


def test_a_client_that_disconnects_frees_its_place_and_its_adapter(base, store, slow_steps):
    app = app_of(base, store)
    service = app.state.service
    with live(app) as server:
        for body in (long("one"), long("one", stream=False)):
            if body["stream"]:
                response = server.post("/v1/chat/completions", body)
                next(events_of(response))
                server.hang_up()
            else:
                hung = _post_and_hang_up(server, body)
                until(lambda: service.loop.counters.running == 1)
                hung()
            until(lambda: service.loop.open_requests == 0 and service.loop.counters.running == 0)
            assert service.adapters.in_use(store.resolve("one")) == 0
        assert service.loop.counters.cancelled == 2
        assert (
            'manytune_requests_total{model="one",outcome="cancelled"} 2.0' in service.metrics.text().decode()
        )


def _post_and_hang_up(server, body):
    content = json.dumps(body).encode()
    connection = socket.create_connection(("127.0.0.1", server.port))
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    return connection.close


def test_requests_beyond_the_queue_are_refused_for_now(base, store, slow_steps):
    app = app_of(base, store, max_queue=1)
    with live(app) as server:
        running = [server.post("/v1/chat/completions", long("one")) for _ in range(9)]
        refused = server.post("/v1/chat/completions", long("one"))
        assert refused.status == 429 and refused.headers["retry-after"] == "1"
        assert b"queue_full" in refused.read()
        texts = {"".join(e["choices"][0]["delta"].get("content", "") for e in events_of(r)) for r in running}
        assert len(texts) == 1
        again = server.post("/v1/chat/completions", long("one", stream=False))
        assert again.status == 200
        again.read()


def test_a_new_version_serves_new_requests_while_running_ones_finish_on_the_old(base, tmp_path, slow_steps):
    store = fill_store(tmp_path, base)
    app = app_of(base, store, watch_seconds=0.05)
    service = app.state.service
    ids = plain_ids(base, "abc")
    options = {"max_new_tokens": 40, "logit_bias": {0: -100}}
    old = alone(base, store, "one", ids, **options).text
    with live(app) as server:
        former = store.resolve("one")
        stream = events_of(server.post("/v1/chat/completions", long("one", "abc")))
        begun = [next(stream) for _ in range(3)]
        new_version(store, tmp_path, base, "one", seed=9)
        answer = list(events_of(server.post("/v1/chat/completions", long("one", "abc"))))
        begun += stream
        until(lambda: former not in service.adapters.cache.resident, 5)
    new = alone(base, store, "one", ids, **options).text  # two engines can't use a base at once
    assert new != old
    for chunks, text, digest in ((begun, old, former), (answer, new, store.resolve("one"))):
        assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == text
        assert {c["system_fingerprint"] for c in chunks} == {f"adapter_{digest[:12]}"}


def test_a_server_that_stops_lets_running_answers_end_and_accepts_no_more(base, store, slow_steps):
    app = app_of(base, store)
    with live(app) as server:
        stream = events_of(server.post("/v1/chat/completions", long("one")))
        begun = [next(stream)]
        server.server.should_exit = True  # what uvicorn does at SIGTERM
        begun += stream
        assert begun[-1]["choices"][0]["finish_reason"] == "length"
        server.thread.join(10)
        assert not app.state.service.loop.is_ready
        with pytest.raises(ConnectionRefusedError):
            server.post("/v1/chat/completions", long("one"))


def test_a_failed_engine_is_reported_and_takes_no_requests(base, store, monkeypatch):
    def broken(engine):
        raise LookupError("out of order")

    app = app_of(base, store)
    with live(app) as server:
        monkeypatch.setattr(Engine, "step", broken)
        first = server.post("/v1/chat/completions", long("one", stream=False))
        assert first.status == 503 and b"unavailable" in first.read()
        until(lambda: not app.state.service.loop.is_ready)
        second = server.post("/v1/chat/completions", long("one"))
        assert second.status == 503
        second.read()


@pytest.mark.parametrize("part", ["submit", "add_adapter"])
def test_an_engine_that_fails_while_it_takes_a_request_answers_it(base, store, monkeypatch, part):
    def broken(*_):
        raise LookupError("out of order")

    app = app_of(base, store)
    with live(app) as server:
        monkeypatch.setattr(Engine, part, broken)
        first = server.post("/v1/chat/completions", long("one"))
        assert first.status == 503 and b"unavailable" in first.read()
        until(lambda: not app.state.service.loop.is_ready)
        assert app.state.service.loop.open_requests == 0
        assert app.state.service.adapters.in_use(store.resolve("one")) == 0


def test_a_call_to_an_engine_that_has_ended_is_refused_and_does_not_wait(base, store):
    service = app_of(base, store).state.service

    async def ask():
        service.loop.start()
        await service.loop.stop(patience=0)
        with pytest.raises(HttpError):
            await asyncio.wait_for(service.loop.call(lambda engine: engine.busy), 5)

    asyncio.run(ask())
