"""vLLM as a process: started, found dead, and ended."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from tests.server.live import until

from manytune.errors import ServeError
from manytune.handover.base import EmptyBase
from manytune.handover.vllm_engine import HandoverSettings, check_store, running_vllm
from manytune.handover.vllm_process import VllmProcess
from manytune.handover.vllm_release import Vllm, find_vllm
from manytune.handover.vllm_rules import VllmVerdicts
from manytune.server.access.auth import Keys

# Answers every request with 200, and dies of /metrics.
SERVER = f"""\
#!{sys.executable}
import socket, sys
at = sys.argv[sys.argv.index("--uds") + 1]
print("loading", sys.argv[2], flush=True)
listening = socket.socket(socket.AF_UNIX)
listening.bind(at)
listening.listen()
while True:
    asked, _ = listening.accept()
    if b"GET /metrics" in asked.recv(65536):
        print("RuntimeError: out of luck", flush=True)
        sys.exit(3)
    asked.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\n{{}}")
    asked.close()
"""


def executable(folder: Path, text: str) -> Path:
    path = folder / "vllm"
    path.write_text(textwrap.dedent(text))
    path.chmod(0o755)
    return path


def test_a_vllm_that_dies_while_it_starts_is_reported_with_its_last_lines():
    process = VllmProcess(
        ["sh", "-c", "echo loading; echo 'no memory' >&2; exit 3"], {"PATH": "/bin:/usr/bin"}
    )
    with pytest.raises(ServeError, match=r"vLLM ended with status 3. Its last lines:\nloading\nno memory"):
        process.wait_until(lambda: False)
    process.stop(1)


def test_one_that_does_not_end_is_killed_with_what_it_has_started():
    process = VllmProcess(
        ["sh", "-c", "trap '' TERM; sleep 60 & echo $!; sleep 60"], {"PATH": "/bin:/usr/bin"}
    )
    until(lambda: len(process._lines) == 1)
    worker = int(process._lines[0])
    process.stop(0.05)
    until(lambda: _state(worker) in (None, "Z"))
    assert process.failure is None  # it was meant to end


def _state(process: int) -> str | None:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return None


def test_the_front_says_so_when_its_vllm_has_died(base, store, tmp_path, monkeypatch):
    monkeypatch.setenv("MANYTUNE_CACHE", str(tmp_path / "cache"))
    verdicts = VllmVerdicts(store, base, patterns=True)
    checked = check_store(store, verdicts, ())
    vllm = Vllm(executable(tmp_path, SERVER), None)
    ended = []
    with running_vllm(
        vllm, EmptyBase(base, base.name), store, verdicts, checked, HandoverSettings(base_name="base"), Keys()
    ) as (app, process):
        process.on_exit = lambda: ended.append(True)
        with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
            assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
            assert client.get("/metrics").status_code == 503
            until(lambda: ended)
            assert client.get("/healthz").status_code == 503
            body = {"model": "base", "prompt": "a"}
            assert client.post("/v1/completions", json=body).status_code == 503
        assert process.failure is not None
        assert f"loading {base.name}\nRuntimeError: out of luck" in process.failure
    assert list((tmp_path / "cache" / "handover").iterdir()) == []


@pytest.mark.parametrize(
    ("more", "rank"), [((), 16), (("--max-lora-rank", "8"), 8), (("--max_lora_rank=320",), 320)]
)
def test_vllm_is_started_for_the_largest_rank_that_it_can_serve(base, store, more, rank):
    verdicts = VllmVerdicts(store, base, patterns=True)
    checked = check_store(store, verdicts, more)
    assert verdicts.most_rank == rank
    assert [(one.entry.names, one.verdict.rank, one.reason) for one in checked] == [
        (("one",), 2, None),
        (("two",), 2, None),
    ]


def test_a_rank_that_vllm_does_not_take_is_refused(base, store):
    with pytest.raises(ServeError, match="--max-lora-rank 12: vLLM takes 1, 8, 16"):
        check_store(store, VllmVerdicts(store, base, patterns=True), ("--max-lora-rank", "12"))


def test_without_vllm_it_says_how_to_install_it():
    with pytest.raises(
        ServeError, match=r"there is no vLLM. Install it into an environment of its own .*--vllm"
    ):
        find_vllm("no-such-vllm")


def test_the_release_is_what_the_executables_own_interpreter_knows(tmp_path):
    executable(tmp_path, "#!/bin/sh\necho 'not asked'\n")
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 0.32.0\n")
    python.chmod(0o755)
    assert find_vllm(str(tmp_path / "vllm")).version == "0.32.0"
