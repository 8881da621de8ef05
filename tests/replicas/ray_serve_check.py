"""Ray Serve with two replicas and 64 adapters under Zipf traffic, and one replica killed; `make ray-serve` runs it.

    python -m tests.replicas.ray_serve_check

A cluster of its own takes minutes to come up and go, and its packages bring an event loop that tests of the server
aren't run with, so this isn't one of `make test`. It ends with an error at the first thing that isn't as it should be.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray
from ray import serve
from tests.server.world import alone, fill_store, plain_ids, save_base

from manytune.replicas.ray_deployment import application
from manytune.server.opening import ServeOptions

PORT = 8799
NAMES = tuple(f"a{number}" for number in range(64))
REQUESTS, CLIENTS = 600, 32


def ask(path: str, body: Any = None) -> tuple[int, str]:
    request = urllib.request.Request(
        f"http://localhost:{PORT}{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=600) as answer:  # noqa: S310
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def completion(name: str, **fields: Any) -> dict[str, Any]:
    fields = {"max_tokens": 8, "temperature": 0, "ignore_eos": True, **fields}
    return {"model": name, "prompt": "abc", **fields}


def text_of(answer: tuple[int, str]) -> str:
    assert answer[0] == 200, answer
    return str(json.loads(answer[1])["choices"][0]["text"])


def metric(name: str, labels: str = "") -> float:
    lines = (line.rpartition(" ") for line in ask("/metrics")[1].splitlines())
    return sum(float(value) for head, _, value in lines if head.startswith(f"{name}{{") and labels in head)


def replica_processes() -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if re.match(rb"ray::ServeReplica:manytune:replica", command):
            found.append(int(process.name))
    return found


def under_zipf(expected: dict[str, str]) -> None:
    popularity = [1 / rank for rank in range(1, len(NAMES) + 1)]
    names = random.Random(20261130).choices(NAMES, popularity, k=REQUESTS)
    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(lambda name: ask("/v1/completions", completion(name)), names))
    assert [text_of(answer) for answer in answers] == [expected[name] for name in names]
    own, others = (metric("manytune_routed_total", f'choice="{choice}"') for choice in ("first", "overflow"))
    share, loads = own / (own + others), metric("manytune_adapter_loads_total")
    print(
        f"{REQUESTS} answers are the single engine's; {share:.3f} went to their own replica; {loads:.0f} loads"
    )
    assert share >= 0.9


def with_one_killed(expected: dict[str, str]) -> None:
    begun = threading.Semaphore(0)

    def stream(name: str) -> str:
        body = json.dumps(completion(name, stream=True, max_tokens=55, n=4)).encode()
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"http://localhost:{PORT}/v1/completions", body, headers)
        with urllib.request.urlopen(request, timeout=600) as answer:  # noqa: S310
            first = answer.readline()
            begun.release()
            return str((first + answer.read()).decode())

    names = NAMES[:8]
    with ThreadPoolExecutor(48) as pool:
        streams = [pool.submit(stream, name) for name in names]
        begun.acquire()
        wholes = {name: pool.submit(ask, "/v1/completions", completion(name)) for name in NAMES[:24]}
        os.kill(replica_processes()[0], signal.SIGKILL)
        for name, whole in wholes.items():
            assert text_of(whole.result()) == expected[name], name
        ends = [one.result() for one in streams]
    broken = [one for one in ends if not one.endswith("data: [DONE]\n\n")]
    assert all('"code":"unavailable"' in one.rsplit("data: ", 1)[1] for one in broken)
    print(
        f"a replica was killed: {len(broken)} of {len(ends)} streams ended with an error, no other answer was lost"
    )
    assert broken
    end = time.monotonic() + 300
    while "2 of 2" not in ask("/healthz")[1]:
        assert time.monotonic() < end, ask("/healthz")
        time.sleep(0.5)
    print("another has taken its place")


def main() -> int:
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        base = save_base(directory / "tiny")
        store = fill_store(directory, base, NAMES)
        ids = plain_ids(base, "abc")
        expected = {
            name: alone(base, store, name, ids, max_new_tokens=8, ignore_eos=True).text for name in NAMES
        }
        options = ServeOptions(
            base=str(directory / "tiny"), base_name="base", adapters=store.root, weights="plain"
        )
        ray.init(num_cpus=2, include_dashboard=False)
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": PORT})
            serve.run(application(options, replicas=2), name="manytune", route_prefix="/")
            under_zipf(expected)
            with_one_killed(expected)
        finally:
            serve.shutdown()
            ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
