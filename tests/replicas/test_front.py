"""The front without processes: routing, retries, limits, streams that break, and one answer of many for operators."""

import asyncio
import hashlib
import json

import pytest
from starlette.testclient import TestClient
from tests.replicas.fakes import DIGESTS, FACTS, FakeReplicas, stream, text, whole

from manytune.replicas.front import front_app
from manytune.replicas.hashing import Ring
from manytune.replicas.vouching import VouchedKeys
from manytune.server.access.auth import Key, Keys

CHAT = "/v1/chat/completions"
SECRET = "between-them"
#: Where adapter `one` lives, of two replicas that weren't asked before, and the other one.
OWN = next(Ring(["0", "1"]).order("adapter d1"))
OTHER = "1" if OWN == "0" else "0"


def client_of(replicas, *keys, **headers):
    app = front_app(replicas, FACTS, Keys(keys), DIGESTS.get, SECRET if keys else None)
    return TestClient(app, base_url="http://localhost", headers=headers)


def key(name, **rights):
    return Key(name=name, sha256=hashlib.sha256(name.encode()).hexdigest(), **rights)


def chat(client, model="one", **fields):
    return client.post(CHAT, json={"model": model, "messages": [{"role": "user", "content": "a"}], **fields})


def test_requests_for_an_adapter_go_to_one_replica_and_different_adapters_to_different_ones():
    replicas = FakeReplicas(lambda name, _: whole({"from": name}))
    client = client_of(replicas)
    for _ in range(3):
        assert chat(client).json() == {"from": OWN}
        assert chat(client, "two").json() == {"from": OTHER}
    assert replicas.routed() == {(OWN, "first"): 3, (OTHER, "first"): 3}


def test_a_replica_gets_the_request_as_it_came_with_the_id_that_the_client_sees():
    replicas = FakeReplicas(lambda *_: whole({}))
    shown = key("k", requests_per_minute=9, concurrent=9, models=("one",), tenant="t")
    client = client_of(replicas, shown, authorization="Bearer k")
    answer = client.post(CHAT + "?a=%20b", json={"model": "one"}, headers={"cookie": "c", "x-other": "x"})
    ((_, request),) = replicas.asked
    assert (request.method, request.target, request.body) == ("POST", CHAT + "?a=%20b", b'{"model":"one"}')
    headers = dict(request.headers)
    sender = VouchedKeys(SECRET).authenticate(headers["authorization"])
    assert sender.key == key("k", models=("one",), tenant="t")  # its limits are the front's to count
    assert "Bearer" not in headers["authorization"] and headers["host"] == "localhost"
    assert headers["x-request-id"] == answer.headers["x-request-id"]
    assert not headers.keys() & {"cookie", "x-other", "connection"}


def test_a_request_that_a_replica_loses_is_sent_to_another_and_answered_once():
    for loses in (lambda: None, lambda: whole({"error": {"code": "unavailable"}}, 503)):
        replicas = FakeReplicas(lambda name, _, lose=loses: lose() if name == OWN else whole({"from": name}))
        answer = chat(client_of(replicas))
        assert answer.status_code == 200 and answer.json() == {"from": OTHER}
        assert [name for name, _ in replicas.asked] == [OWN, OTHER]
        assert replicas.routed() == {(OWN, "first"): 1, (OTHER, "overflow"): 1}


def test_a_request_that_ends_every_replica_is_given_up_after_two():
    replicas = FakeReplicas(lambda *_: None, names=("0", "1", "2"))
    answer = chat(client_of(replicas))
    assert answer.status_code == 503 and answer.json()["error"]["code"] == "unavailable"
    assert answer.headers["retry-after"] == "1" and len(replicas.asked) == 2


def test_without_a_replica_that_works_the_answer_is_503():
    replicas = FakeReplicas(lambda *_: whole({}), down={"0", "1"})
    client = client_of(replicas)
    assert chat(client).status_code == 503 and client.get("/readyz").status_code == 503
    replicas.down.clear()
    assert chat(client).status_code == 200 and client.get("/readyz").status_code == 200


def test_other_errors_of_a_replica_are_passed_on():
    for status, code in ((503, "out_of_memory"), (429, "queue_full"), (404, "model_not_found")):
        replicas = FakeReplicas(lambda *_, status=status, code=code: whole({"error": {"code": code}}, status))
        answer = chat(client_of(replicas))
        assert answer.status_code == status and answer.json()["error"]["code"] == code
        assert len(replicas.asked) == 1


@pytest.mark.parametrize("last", ["data: 2\n\n", "data: 2", "data: 2\n", "data: \u00e9"])
def test_a_stream_whose_replica_is_lost_ends_with_an_error_event(last):
    replicas = FakeReplicas(lambda *_: stream("data: 1\n\n", last, is_lost=True))
    answer = chat(client_of(replicas), stream=True)
    assert answer.status_code == 200 and len(replicas.asked) == 1
    *begun, error, end = answer.text.split("\n\n")
    assert begun[0] == "data: 1" and end == "" and "[DONE]" not in answer.text
    assert json.loads(error.strip().removeprefix("data: "))["error"]["code"] == "unavailable"


def test_a_stream_is_passed_on_as_it_is():
    parts = ["data: 1\n\n", "data: 2\n", "\n", "data: [DONE]\n\n"]
    answer = chat(client_of(FakeReplicas(lambda *_: stream(*parts))), stream=True)
    assert answer.text == "".join(parts)


def test_limits_are_counted_once_for_all_replicas_and_by_answers():
    replicas = FakeReplicas(lambda *_: whole({}))
    client = client_of(replicas, key("few", requests_per_minute=5), authorization="Bearer few")
    assert chat(client, n=3).status_code == 200 and chat(client, "two").status_code == 200
    refused = chat(client, "two", n=2)
    assert refused.status_code == 429 and refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert (
        chat(client_of(replicas, key("few", concurrent=2), authorization="Bearer few"), n=3).status_code
        == 400
    )
    assert len(replicas.asked) == 2


def test_what_a_replica_refuses_anyway_does_not_count_as_many_answers():
    replicas = FakeReplicas(lambda *_: whole({"error": {"code": "invalid_value"}}, 400))
    client = client_of(replicas, key("few", requests_per_minute=5), authorization="Bearer few")
    assert chat(client, n=1000).status_code == 400 and len(replicas.asked) == 1


def test_the_front_refuses_what_a_single_server_refuses_and_asks_no_replica():
    replicas = FakeReplicas(lambda *_: whole({}))
    client = client_of(replicas, key("user"), key("root", admin=True), authorization="Bearer user")
    assert client.get("/v1/models", headers={"authorization": "Bearer wrong"}).status_code == 401
    assert client.get("/v1/adapters").status_code == client.get("/metrics").status_code == 403
    assert client.post(CHAT, content=b"{}").status_code == 415
    assert (
        client.post(CHAT, content=b" " * 20_000, headers={"content-type": "application/json"}).status_code
        == 413
    )
    assert client_of(replicas).get("/v1/models", headers={"host": "evil.example"}).status_code == 400
    assert not replicas.asked


def row(name, **state):
    fixed = {"id": name, "root": "d1", "bytes": 5, "unservable": None, "last_error": None}
    return {**fixed, "requests": 0, "errors": 0, "resident": False, "pinned": False, **state}


def operator(replicas):
    return client_of(replicas, key("root", admin=True), authorization="Bearer root")


def test_adapters_are_listed_with_their_states_in_all_replicas():
    rows = {
        "0": [row("one", requests=2, resident=True), row("two", errors=1, last_error="damaged")],
        "1": [row("one", requests=3, resident=True, pinned=True), row("late")],
    }
    replicas = FakeReplicas(lambda name, _: whole({"object": "list", "data": rows[name]}))
    found = operator(replicas).get("/v1/adapters").json()
    assert found["object"] == "list" and [one["id"] for one in found["data"]] == ["late", "one", "two"]
    _, one, two = found["data"]
    assert (one["requests"], one["resident"], one["pinned"], one["replicas"]) == (5, True, True, ["0", "1"])
    assert (two["errors"], two["last_error"], two["replicas"]) == (1, "damaged", [])


def test_operations_go_to_all_replicas_and_load_to_the_adapters_own():
    answers = {
        "unload": {"0": {"id": "one", "unloaded": False}, "1": {"id": "one", "unloaded": True}},
        "reload": {
            "0": {"changed": {"added": ["b"], "updated": [], "removed": []}},
            "1": {"changed": {"added": ["a", "b"], "updated": [], "removed": ["c"]}},
        },
        "load": {"0": {"resident": True}, "1": {"resident": True}},
    }
    replicas = FakeReplicas(lambda name, request: whole(answers[request.target.split("/")[-1]][name]))
    client = operator(replicas)
    assert client.post("/v1/adapters/one/unload").json() == {"id": "one", "unloaded": True}
    changed = client.post("/v1/adapters/reload").json()["changed"]
    assert changed == {"added": ["a", "b"], "updated": [], "removed": ["c"]}
    replicas.asked.clear()
    client.post("/v1/adapters/one/load")
    assert [name for name, _ in replicas.asked] == [OWN]


def test_an_operation_that_one_replica_refuses_is_refused():
    replicas = FakeReplicas(
        lambda name, _: whole({"error": {"code": "adapter_in_use"}}, 409 if name == "1" else 200)
    )
    assert operator(replicas).post("/v1/adapters/one/unload").status_code == 409


def test_a_pin_is_repeated_for_replicas_that_start_later_until_it_is_undone():
    replicas = FakeReplicas(lambda *_: whole({"id": "one", "pinned": True}))
    client = operator(replicas)
    client.post("/v1/adapters/user/one/pin")
    assert replicas.repeated["user/one"].target == "/v1/adapters/user/one/pin"
    client.post("/v1/adapters/user/one/unpin")
    assert not replicas.repeated


def test_metrics_are_those_of_each_replica_and_the_fronts_own():
    said = (
        "# HELP manytune_requests_total Requests.\n# TYPE manytune_requests_total counter\n"
        'manytune_requests_total{{model="one",outcome="stop"}} {0}\n'
        "# HELP manytune_refusals_total Errors.\n# TYPE manytune_refusals_total counter\n"
        'manytune_refusals_total{{status="404"}} 7.0\n'
        "# HELP manytune_wait_seconds Waits.\n# TYPE manytune_wait_seconds histogram\n"
        'manytune_wait_seconds_bucket{{le="+Inf",model="one"}} {0}\n'
    )
    replicas = FakeReplicas(lambda name, _: text(said.format({"0": 2.0, "1": 5.0}[name])))
    client = client_of(replicas)
    chat(client, "\u00e9" * 3)
    client.get("/v1/models", headers={"host": "evil.example"})
    lines = client.get("/metrics").text.splitlines()
    for number, count in (("0", "2.0"), ("1", "5.0")):
        assert f'manytune_requests_total{{model="one",outcome="stop",replica="{number}"}} {count}' in lines
        assert f'manytune_wait_seconds_bucket{{le="+Inf",model="one",replica="{number}"}} {count}' in lines
    assert [line for line in lines if line.startswith("manytune_refusals_total{")] == [
        'manytune_refusals_total{status="400"} 1.0'
    ]
    assert 'manytune_replica_up{replica="1"} 1.0' in lines
    assert 'manytune_replica_restarts_total{replica="0"} 3.0' in lines
    assert sum(line.startswith("manytune_routed_total{") for line in lines) == 1
    assert len([line for line in lines if line.startswith("# TYPE manytune_requests")]) == 1


def test_the_server_is_healthy_while_one_replica_is():
    def health(*statuses):
        replicas = FakeReplicas(lambda name, _: text("", statuses[int(name)]))
        answer = client_of(replicas).get("/healthz")
        return answer.status_code, answer.text

    assert health(200, 200) == (200, "ok: 2 of 2 replicas\n")
    assert health(503, 200) == (200, "ok: 1 of 2 replicas\n")
    assert health(503, 503) == (503, "failed: 0 of 2 replicas\n")


def test_a_replica_that_hangs_is_named_and_the_others_say_how_they_are():
    line = "the store of adapters can't be read; no new versions are served"
    replicas = FakeReplicas(
        lambda _, request: text(f"ok\n{line}\n" if request.target == "/healthz" else ""), hanging={"1"}
    )
    client = client_of(replicas)
    health = client.get("/healthz")
    assert (health.status_code, health.text) == (
        200,
        f"ok: 1 of 2 replicas\nno answer from replica 1 within 2 s\n{line}\n",
    )
    up = [
        line for line in client.get("/metrics").text.splitlines() if line.startswith("manytune_replica_up{")
    ]
    assert up == ['manytune_replica_up{replica="0"} 1.0', 'manytune_replica_up{replica="1"} 0.0']
    replicas.hanging.add("0")
    assert client.get("/healthz").status_code == 503


def test_a_path_that_no_url_has_is_refused():
    replicas = FakeReplicas(lambda *_: whole({}))
    app = front_app(replicas, FACTS, Keys([key("root", admin=True)]), DIGESTS.get, SECRET)
    sent = []

    async def ask():
        scope = {
            "type": "http",
            "method": "GET",
            "path": "/\u00e9",
            "raw_path": "/\u00e9".encode(),
            "headers": [(b"authorization", b"Bearer root")],
        }

        messages = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive():
            if not messages:
                await asyncio.Event().wait()  # the client stays
            return messages.pop()

        async def send(message):
            sent.append(message)

        await app(scope, receive, send)

    asyncio.run(asyncio.wait_for(ask(), 20))
    assert sent[0]["status"] == 404 and not replicas.asked
