"""`manytune serve` from start to SIGTERM."""

import http.client
import importlib.util
import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from starlette.testclient import TestClient
from tests.forked_python import forked_python
from tests.packed import installed
from tests.server.world import fill_store, plain_ids, save_base
from tests.store.adapters_made import make_adapter
from tests.store.peft_made import save_peft
from typer.testing import CliRunner

from manytune.cli.main import build_app, main
from manytune.engine.engine import Engine
from manytune.engine.options import EngineOptions
from manytune.engine.request import Request, SamplingParams
from manytune.errors import StoreError
from manytune.store.base import load_base
from manytune.store.resident import read_resident
from manytune.store.store import AdapterStore


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    base = save_base(folder / "tiny")
    return folder / "tiny", base, fill_store(folder, base)


def run(*arguments, **options):
    return CliRunner().invoke(build_app(), list(arguments), **options)


def test_others_can_reach_a_server_only_with_keys(world):
    directory, _, store = world
    result = run(
        "serve", "--base", str(directory), "--adapters", str(store.root), "--host", "0.0.0.0", env={}
    )
    assert result.exit_code == 1
    assert "there are no API keys" in " ".join(result.stderr.split())


def test_without_its_extra_it_says_what_to_install(world, monkeypatch):
    directory, _, store = world
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    result = run("serve", "--base", str(directory), "--adapters", str(store.root))
    assert result.exit_code == 1
    assert re.search(
        r"uvicorn isn't installed. Run: pip install .*\[serve\]'", " ".join(result.stderr.split())
    )


def test_on_windows_it_says_where_it_runs_before_a_base_is_loaded(monkeypatch):
    monkeypatch.setattr("manytune.server.listening.sys", SimpleNamespace(platform="win32"))
    said = " ".join(run("serve", "--base", "absent").stderr.split())
    assert "manytune serve runs on Linux and macOS. On Windows, run it in WSL 2" in said


def test_the_former_name_of_reordered_weights_is_refused_with_the_new_one(world):
    directory, _, store = world
    result = run("serve", "--base", str(directory), "--adapters", str(store.root), "--weights", "packed")
    assert result.exit_code == 2
    assert "'packed' is called 'reordered' now" in " ".join(result.stderr.replace("│", " ").split())


def test_names_and_stores_that_cannot_be_served_are_refused(world, tmp_path):
    directory, _, store = world
    for options, message in (
        (["--adapters", str(tmp_path / "something")], "expected a directory, found a file"),
        (["--adapters", str(tmp_path)], "isn't a store of adapters, has no subdirectories with an adapter"),
        (["--adapters", str(store.root), "--base-name", "one"], "an adapter is called 'one' like the base"),
        (
            ["--adapters", str(store.root), "--kv-tokens", str(10**11), "--port", "0"],
            "A smaller number of tokens",
        ),
        (["--adapters", str(store.root), "--base-name", "a/b/c"], "can't be the name of a model"),
        (["--adapters", str(store.root), "--keys", str(tmp_path / "keys.json")], "the keys can't be read"),
    ):
        (tmp_path / "something").touch()
        result = run("serve", "--base", str(directory), *options)
        assert result.exit_code == 1 and re.search(message, " ".join(result.stderr.split())), result.stderr


def test_more_processes_than_memory_holds_are_refused_at_once():
    result = run("serve", "--base", "absent", "--workers", "1000000", "--port", "0")
    assert result.exit_code == 2
    said = " ".join(result.stderr.split())
    assert "Invalid value for --workers: 1,000,000 processes need 100,000,000 MiB without their base" in said


def test_a_port_in_use_is_said_before_a_base_is_loaded():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        result = run("serve", "--base", "nowhere", "--port", port)
    assert result.exit_code == 1
    assert f"port {port} of 127.0.0.1 is in use by another program" in " ".join(result.stderr.split())
    result = run("serve", "--base", "nowhere", "--host", "localhost", "--port", "0")
    assert "nowhere" in result.stderr


@pytest.fixture
def started(monkeypatch, tmp_path):
    """What the command would serve."""
    apps = []
    monkeypatch.setattr("manytune.server.listening.check_address", lambda host, port: None)
    monkeypatch.setenv("MANYTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("manytune.cli.serve._listen", lambda app, *_, **__: apps.append(app))
    return apps


def models(client):
    return [one["id"] for one in client.get("/v1/models").json()["data"]]


def test_how_the_base_runs_is_in_the_log_with_the_reason(world, started):
    directory, _, store = world
    result = run("serve", "--base", str(directory), "--adapters", str(store.root))
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.stderr.splitlines() if line.startswith("{")]
    (said,) = [line["message"] for line in lines if "the base runs with" in line["message"]]
    runtime = "openvino" if importlib.util.find_spec("openvino") else "torch"
    assert f"runtime={runtime!r} and weights='reordered': OpenVINO" in said
    assert "its weights keep their own precision, as the" in said and "into groups of 32" in said


@pytest.mark.parametrize("there", [False, True])
def test_without_adapters_it_serves_the_base_and_what_is_added_later(world, started, tmp_path, there):
    directory, base, _ = world
    if there:
        (tmp_path / "adapters").mkdir()
    mode = ["--runtime", "torch", *(["--speculation", "off"] if there else [])]
    result = run("serve", "--base", str(directory), "--adapters", str(tmp_path / "adapters"), *mode)
    assert result.exit_code == 0, result.output
    assert (started[0].state.service.loop._engine._speculation.lookup((5,), 9) is None) == there
    assert "no adapters yet; those that are put there are served" in " ".join(result.stderr.split())
    with TestClient(started[0], base_url="http://localhost") as client:
        assert models(client) == ["tiny"]
        AdapterStore(tmp_path / "adapters").add(make_adapter(tmp_path / "made", base), name="later")
        client.portal.call(started[0].state.watcher.check)
        assert models(client) == ["tiny", "later"]


def test_a_directory_of_peft_adapters_is_served_as_it_is(world, started, tmp_path):
    directory, base, _ = world
    for seed, name in enumerate(("a", "b")):
        save_peft(tmp_path / "adapters" / name, seed)
    before = sorted(path.name for path in (tmp_path / "adapters").rglob("*"))
    result = run("serve", "--base", str(directory), "--adapters", str(tmp_path / "adapters"))
    assert result.exit_code == 0 and "tiny and 2 adapters" in result.stderr, result.output
    with TestClient(started[0], base_url="http://localhost") as client:
        assert models(client) == ["tiny", "a", "b"]
        body = {"model": "b", "prompt": "ab", "max_tokens": 5, "temperature": 0}
        answer = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
    engine = Engine(base.model, base.tokenizer)
    engine.add_adapter("b", read_resident(tmp_path / "adapters" / "b"))
    request = Request("1", plain_ids(base, "ab"), SamplingParams(max_new_tokens=5), "b")
    assert answer == engine.generate([request])[0].text
    assert sorted(path.name for path in (tmp_path / "adapters").rglob("*")) == before


def test_weights_nf4_serves_the_base_packed(world, started, tmp_path):
    installed("bitsandbytes")
    directory, _, store = world
    result = run("serve", "--base", str(directory), "--adapters", str(store.root), "--weights", "nf4")
    assert result.exit_code == 0, result.output
    packed = load_base(str(directory), weights="nf4")
    engine = Engine(packed.model, packed.tokenizer, EngineOptions(weights="plain"))
    engine.add_adapter("one", read_resident(store.path("one")))
    request = Request("1", plain_ids(packed, "ab"), SamplingParams(max_new_tokens=5), "one")
    body = {"model": "one", "prompt": "ab", "max_tokens": 5, "temperature": 0}
    with TestClient(started[0], base_url="http://localhost") as client:
        answer = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
    assert answer == engine.generate([request])[0].text


@pytest.mark.slow
def test_it_serves_until_sigterm_and_lets_the_running_answer_end(world):
    directory, _, store = world
    options = ["--base", directory, "--adapters", store.root, "--port", "0", "--max-answer-tokens", "60"]
    options += ["--runtime", "torch"]
    environment = {**os.environ, "MANYTUNE_API_KEY": "secret", "OMP_NUM_THREADS": "1"}
    with (
        forked_python() as python,
        subprocess.Popen(
            [python, "-m", "manytune", "serve", *options], stderr=subprocess.PIPE, text=True, env=environment
        ) as process,
    ):
        try:
            port = None
            for line in process.stderr:
                if found := re.search(r"running on http://127.0.0.1:(\d+)", line):
                    port = int(found[1])
                    break
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            body = {"model": "one", "messages": [{"role": "user", "content": "a"}], "stream": True}
            body |= {"max_tokens": 60, "logit_bias": {"0": -100}, "temperature": 0}
            headers = {"content-type": "application/json", "authorization": "Bearer secret"}
            connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
            response = connection.getresponse()
            assert response.status == 200
            response.readline()
            process.send_signal(signal.SIGTERM)
            rest = response.read().decode()
            connection.close()
            assert '"finish_reason":"length"' in rest and rest.endswith("data: [DONE]\n\n")
            log = process.stderr.read()
            # uvicorn ends as the signal wants it, when all is done
            assert process.wait(20) == -signal.SIGTERM
        finally:
            process.kill()
    lines = [json.loads(line) for line in log.splitlines()]
    (asked,) = [line for line in lines if line.get("path") == "/v1/chat/completions"]
    assert asked["status"] == 200 and asked["key"] == "MANYTUNE_API_KEY" and asked["model"] == "one"
    assert asked["completion_tokens"] == 60 and "request_id" in asked
    assert "secret" not in log and '"a"' not in log


def fail_in_its_engine(arguments, stderr):
    """`manytune ARGUMENTS` in a process that is like a new one, but for the imports, which take seconds."""
    os.dup2(stderr, 2)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    sys.argv = ["manytune", *arguments]
    torch.set_num_threads(1)  # OpenMP's threads aren't there after a fork, and are waited for
    Engine.step = lambda engine: 1 / 0
    main()


@pytest.mark.slow
def test_a_server_whose_engine_fails_ends_so_that_it_is_started_again(world):
    directory, _, store = world
    arguments = ["serve", "--base", str(directory), "--adapters", str(store.root), "--port", "0"]
    arguments += ["--runtime", "torch"]  # OpenVINO's threads don't survive a fork
    read, write = os.pipe()
    process = multiprocessing.get_context("fork").Process(
        target=fail_in_its_engine, args=(arguments, write), daemon=True
    )
    process.start()
    os.close(write)
    with open(read) as stderr:
        lines = (re.search(r"running on http://127.0.0.1:(\d+)", line) for line in stderr)
        port = next(int(found[1]) for found in lines if found)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        body = json.dumps({"model": "one", "messages": [{"role": "user", "content": "a"}]})
        connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
        assert connection.getresponse().status == 503
        connection.close()
        log = stderr.read()
    process.join(30)
    assert process.exitcode == 1
    assert "ZeroDivisionError" in log


@pytest.mark.parametrize("command", ["chat", "chat with an adapter", "serve", "generate"])
@pytest.mark.parametrize(("there", "expected"), [(True, "cuda"), (False, "cpu")])
def test_every_command_that_answers_uses_the_gpu_if_there_is_one(
    world, monkeypatch, command, there, expected
):
    directory, _, store = world
    asked = []

    def load(spec, *, device=None, **options):
        asked.append(device)
        raise StoreError("enough is known")

    monkeypatch.setattr("torch.cuda.is_available", lambda: there)
    monkeypatch.setattr("manytune.store.base.load_base", load)
    base, adapter = ["--base", str(directory)], ["--adapter", str(store.path("one"))]
    arguments = {
        "chat": ["chat", *base],
        "chat with an adapter": ["chat", *base, *adapter],
        "serve": ["serve", *base, "--adapters", str(store.root)],
        "generate": ["generate", "a", *base, *adapter],
    }
    assert run(*arguments[command]).exit_code == 1
    assert asked == [expected]
