"""A server of two worker processes behind its front; killing one of them comes last."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest
from tests.random_cases import DEEP
from tests.replicas.conftest import NAMES, two_workers
from tests.replicas.fakes import FACTS
from tests.server.live import events_of, until
from tests.server.world import alone, new_version, plain_ids, save_base
from tests.store.adapters_made import make_adapter
from tests.store.remote.s3_server import environment, s3_server

from manytune.errors import ConfigError
from manytune.replicas import workers
from manytune.replicas.contract import Facts, Forwarded
from manytune.replicas.worker import Order, _open
from manytune.replicas.workers import Workers
from manytune.server.opening import ServeOptions
from manytune.store.remote.store import SharedStore
from manytune.store.store import AdapterStore

pytestmark = pytest.mark.slow


def metric(client, name, **labels):
    """The sum of a metric's samples with these labels."""
    total = 0.0
    for line in client.call("GET", "/metrics")[1].decode().splitlines():
        head, _, value = line.rpartition(" ")
        if head.partition("{")[0] == name and all(f'{key}="{one}"' in head for key, one in labels.items()):
            total += float(value)
    return total


def completion(model, **fields):
    fields = {"max_tokens": 8, "temperature": 0, "ignore_eos": True, **fields}
    return {"model": model, "prompt": "abc", **fields}


def ask(served, model, **fields):
    with served.client() as client:
        return client.call("POST", "/v1/completions", completion(model, **fields))


def stream(served, model, tokens=55, n=16):
    """Of many answers, so that it isn't over at once."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    body = json.dumps(completion(model, stream=True, max_tokens=tokens, n=n))
    headers = {"content-type": "application/json", "authorization": "Bearer root"}
    connection.request("POST", "/v1/completions", body, headers)
    return connection, connection.getresponse()


def owner(served, name):
    """The worker that an adapter lives with: the one that gets a request for it while nothing else runs."""
    assert ask(served, name, user=f"owner of {name}")[0] == 200
    until(lambda: any(line.get("user") == f"owner of {name}" for line in served.lines()))
    return [line["replica"] for line in served.lines() if line.get("user") == f"owner of {name}"][-1]


def expected(served, model, tokens=8):
    ids = plain_ids(served.base, "abc")
    name = None if model == "base" else model
    return alone(served.base, served.store, name, ids, max_new_tokens=tokens, ignore_eos=True).text


def test_one_that_hangs_is_not_waited_for_when_each_is_asked_how_it_is(caplog):
    async def answering(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok\n")
        await writer.drain()
        writer.close()

    async def hanging(reader, writer):
        await reader.read()  # until the other side hangs up
        writer.close()

    async def ask_each(folder):
        options = ServeOptions(base="base", adapters=folder)
        workers = Workers(options, None, count=2, threads=1, folder=folder)
        workers._running = dict.fromkeys("01")
        servers = [
            await asyncio.start_unix_server(serve, folder / name)
            for name, serve in (("0", hanging), ("1", answering))
        ]
        found = await workers.ask_each(Forwarded("GET", "/healthz"), seconds=0.2)
        for server in servers:
            server.close()
        return [(one.replica, one.body) for one in found]

    with tempfile.TemporaryDirectory() as folder:  # pytest's own have names too long for a socket
        assert asyncio.run(ask_each(Path(folder))) == [("1", b"ok\n")]
    assert "worker 0 didn't answer /healthz within 0.2 s" in caplog.text


@pytest.mark.parametrize(
    ("adapters", "found", "orders"),
    [
        (Path("adapters"), "/cache/folders/ab", [None, "/cache/folders/ab"]),
        ("s3://bucket/adapters", "s3://bucket/adapters", [None, None]),
    ],
)
def test_each_worker_follows_shared_storage_and_one_alone_a_directory(
    adapters, found, orders, tmp_path, monkeypatch
):
    given = []

    class Started:
        @staticmethod
        async def start(order, *, threads):
            given.append(order.store)
            facts = Facts(**{**vars(FACTS), "store": found})
            return SimpleNamespace(facts=facts, pid=1, wait=asyncio.Event().wait)

    monkeypatch.setattr(workers, "Worker", Started)

    async def start():
        options = ServeOptions(base="base", adapters=adapters)
        return await Workers(options, None, count=2, threads=1, folder=tmp_path).start()

    assert asyncio.run(start()).store == found
    assert given == orders


def test_an_adapter_is_in_the_memory_of_its_own_replica_alone(served):
    with served.client() as client:
        for name in NAMES:
            for _ in range(2):
                assert client.call("POST", "/v1/completions", completion(name))[0] == 200
        found = {one["id"]: one["replicas"] for one in client.call("GET", "/v1/adapters")[1]["data"]}
        assert metric(client, "manytune_routed_total", choice="overflow") == 0
        assert metric(client, "manytune_adapter_loads_total") == len(NAMES)
    assert all(len(replicas) == 1 for replicas in found.values())
    assert {replica for (replica,) in found.values()} == {"0", "1"}


def test_answers_are_those_of_a_single_server_whole_and_streamed(served):
    with ThreadPoolExecutor(9) as pool:
        answers = dict(
            zip(("base", *NAMES), pool.map(lambda name: ask(served, name), ("base", *NAMES)), strict=True)
        )
    for name, (status, answer) in answers.items():
        assert status == 200 and answer["choices"][0]["text"] == expected(served, name), name
    connection, response = stream(served, "a", tokens=8, n=1)
    text = "".join(event["choices"][0]["text"] for event in events_of(response))
    connection.close()
    assert text == expected(served, "a")


def test_a_limit_of_a_key_is_one_for_all_workers(served):
    def status(name):
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
        headers = {"content-type": "application/json", "authorization": "Bearer few"}
        connection.request(
            "POST", "/v1/completions", json.dumps(completion(name, n=2, max_tokens=1)), headers
        )
        found = connection.getresponse().status
        connection.close()
        return found

    assert [status(name) for name in NAMES[:4]] == [200, 200, 200, 429]


def test_a_client_that_hangs_up_ends_its_answer_in_the_worker(served):
    with served.client() as client:
        before = metric(client, "manytune_requests_total", outcome="cancelled")
        for name in NAMES[:4]:
            connection, response = stream(served, name)
            response.readline()
            response.close()
            connection.close()
        until(lambda: metric(client, "manytune_running_requests") == 0)
        assert metric(client, "manytune_requests_total", outcome="cancelled") > before


def test_a_new_version_serves_from_the_next_request_on_and_no_request_fails_meanwhile(served):
    stop, statuses = threading.Event(), []

    def keep_asking():
        while not stop.is_set():
            statuses.append(ask(served, "h", max_tokens=2)[0])

    asking = [threading.Thread(target=keep_asking) for _ in range(3)]
    for one in asking:
        one.start()
    for seed in (101, 102, 103):
        new_version(served.store, served.directory, served.base, "h", seed)
        status, answer = ask(served, "h")
        assert status == 200 and answer["choices"][0]["text"] == expected(served, "h")
        assert answer["system_fingerprint"] == f"adapter_{served.store.resolve('h')[:12]}"
    stop.set()
    for one in asking:
        one.join()
    assert set(statuses) == {200}


def test_each_request_has_one_line_in_the_log(served):
    with served.client() as client:
        client.call("POST", "/v1/completions", completion("a", user="one-line"))
        client.call("POST", "/v1/unknown", {})
    until(lambda: [line for line in served.lines() if line.get("path") == "/v1/unknown"])
    (line,) = [line for line in served.lines() if line.get("user") == "one-line"]
    assert line["replica"] in "01" and line["completion_tokens"] == 8 and line["key"] == "root"


def test_a_killed_worker_loses_its_streams_alone_which_end_with_an_error_and_comes_back(served):
    with served.client() as client:
        assert client.call("POST", "/v1/adapters/a/pin")[0] == 200
        own = owner(served, "b")
        theirs = [name for name in NAMES if owner(served, name) == own]
        (other,) = {"0", "1"} - {own}
        connection, response = stream(served, "b")
        first = response.readline()
        assert first.startswith(b"data: ")
        pid = served.pids()[own]
        os.kill(pid, signal.SIGSTOP)  # so that the stream is running, whatever the machine does
        with ThreadPoolExecutor(len(theirs)) as pool:
            waiting = {name: pool.submit(ask, served, name) for name in theirs}
            assert ask(served, next(name for name in NAMES if owner(served, name) == other))[0] == 200
            os.kill(pid, signal.SIGKILL)
            answers = {name: one.result() for name, one in waiting.items()}
        for name, (status, answer) in answers.items():
            assert status == 200 and answer["choices"][0]["text"] == expected(served, name), name
        rest = response.read().decode()
        connection.close()
        error = json.loads(rest.rstrip().rpartition("data: ")[2])["error"]
        assert error["code"] == "unavailable" and "[DONE]" not in rest
        until(lambda: client.call("GET", "/healthz")[1] == b"ok: 2 of 2 replicas\n", seconds=120)
        assert metric(client, "manytune_replica_restarts_total", replica=own) == 1
        pinned = next(one for one in client.call("GET", "/v1/adapters")[1]["data"] if one["id"] == "a")
        assert pinned["pinned"] and own in pinned["replicas"]
        assert served.pids()[own] != pid
    died = next(line for line in served.lines() if line["message"].startswith("a worker has ended"))
    assert died["how"] == "was ended by SIGKILL" and died["replica"] == own and died["level"] == "error"


def test_a_request_that_waits_at_a_killed_worker_is_answered_by_another(served):
    with served.client() as client:
        until(lambda: client.call("GET", "/healthz")[1] == b"ok: 2 of 2 replicas\n", seconds=120)
        own = owner(served, "b")
        pid = served.pids()[own]
        before = metric(client, "manytune_routed_total", choice="first", replica=own)
        os.kill(pid, signal.SIGSTOP)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(ask, served, "b")
            until(lambda: metric(client, "manytune_routed_total", choice="first", replica=own) > before)
            assert not waiting.done()
            os.kill(pid, signal.SIGKILL)
            status, answer = waiting.result()
    assert status == 200 and answer["choices"][0]["text"] == expected(served, "b")


@pytest.mark.parametrize("keeps_the_store", [True, False])
def test_no_worker_goes_by_a_measurement_or_by_memory_as_all_must_answer_alike(
    served, monkeypatch, keeps_the_store
):
    measured = []

    def choose(model, weights, runtime, *, measure, by_memory):
        measured.append((weights, measure, by_memory))
        raise ConfigError("enough is known")

    monkeypatch.setattr("manytune.engine.choice.choose", choose)
    options = ServeOptions(base=str(served.directory / "tiny"), adapters=served.store.root, weights="auto")
    store = None if keeps_the_store else str(served.store.root)
    with pytest.raises(ConfigError, match="enough is known"):
        _open(Order(0, "", options, None, store))
    assert measured == [("auto", None, False)]


if DEEP:

    def test_two_workers_of_a_store_on_s3_answer_as_one_server_follow_it_and_come_back(tmp_path, monkeypatch):
        base = save_base(tmp_path / "tiny")
        local = AdapterStore(tmp_path / "local")
        made = [make_adapter(tmp_path / str(seed), base, seed=seed) for seed in range(3)]
        for name, adapter in zip("abc", made, strict=True):
            local.add(adapter, name=name)
        ids = plain_ids(base, "abc")
        expected = {
            name: alone(base, local, name, ids, max_new_tokens=8, ignore_eos=True).text for name in "abc"
        }

        def text(name):
            status, answer = ask(served, name)
            return answer["choices"][0]["text"] if status == 200 else status

        with s3_server() as address:
            for name, value in environment(address).items():
                monkeypatch.setenv(name, value)
            fsspec.filesystem("s3", skip_instance_cache=True).mkdir("bucket")
            store = SharedStore("s3://bucket/adapters")
            store.add(made[0], name="a")
            store.add(made[1], name="b")
            monkeypatch.setenv("MANYTUNE_CACHE", str(tmp_path / "cache of the server"))
            with two_workers(tmp_path, base, store, "--watch-seconds", "0.2") as served:
                assert [text(name) for name in "ab"] == [expected[name] for name in "ab"]
                store.add(made[2], name="a", move=True)
                store.alias("b", "again")
                until(lambda: text("a") == expected["c"] and text("again") == expected["b"], seconds=60)
                before = served.pids()
                os.kill(before["0"], signal.SIGKILL)
                assert text("b") == expected["b"]
                until(lambda: served.pids()["0"] != before["0"], seconds=120)
                assert [text(name) for name in ("a", "again")] == [expected["c"], expected["b"]]
