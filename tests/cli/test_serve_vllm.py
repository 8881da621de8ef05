"""`manytune serve --engine vllm` up to where vLLM starts."""

import json
import os
import signal
import sys

import pytest
from tests.server.world import fill_store, save_base
from tests.store.adapters_made import make_adapter
from typer.testing import CliRunner

from manytune.cli.main import build_app
from manytune.cli.serve_vllm import unwound_by_sigterm


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("handed-over")
    base = save_base(folder / "tiny")
    store = fill_store(folder, base, ("plain",))
    store.add(make_adapter(folder / "made-dora", base, use_dora=True), name="dora")
    store.add(make_adapter(folder / "made-ranks", base, rank_pattern={"q_proj": 3}), name="ranks")
    return folder / "tiny", store


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("MANYTUNE_CACHE", str(tmp_path / "cache"))


def run(world, *arguments):
    directory, store = world
    base = ["serve", "--base", str(directory), "--adapters", str(store.root)]
    result = CliRunner().invoke(build_app(), [*base, *arguments])
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


def test_check_lists_what_vllm_can_serve_and_why_not_the_others(world):
    code, out, _ = run(world, "--engine", "vllm", "--check", "--vllm", "no-such-vllm", "--json")
    found = {one["names"][0]: one for one in json.loads(out)}
    assert code == 0 and found["plain"]["servable"] and found["plain"]["rank"] == 2
    assert "use_dora" in found["dora"]["reason"]
    # Without a vLLM, only what every release can do is possible.
    assert "one rank and one alpha before its release 0.32" in found["ranks"]["reason"]
    code, out, _ = run(world, "--engine", "vllm", "--check", "--vllm", "no-such-vllm")
    assert code == 0 and "vLLM can serve 1 of 3 adapters." in out


def test_check_knows_what_the_installed_release_can_do(world, tmp_path):
    for name, text in (("vllm", "exit 1"), ("python", "echo 0.32.0")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    _, out, _ = run(world, "--engine", "vllm", "--check", "--vllm", str(tmp_path / "vllm"))
    assert "vLLM 0.32.0 can serve 2 of 3 adapters." in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--engine", "vllm", "--vllm", "no-such-vllm"],
            "there is no vLLM. Install it into an environment of its own",
        ),
        (
            ["--engine", "vllm", "--weights", "int8"],
            "--weights is for manytune's own engine: give vLLM's --quantization",
        ),
        (
            ["--engine", "vllm", "--speculation", "off"],
            "--speculation is for manytune's own engine: give vLLM's --speculative-config",
        ),
        (["--engine", "vllm", "--workers", "2"], "--workers is for manytune's own engine"),
        (
            ["--engine", "vllm", "--on", "ray"],
            "--on is for manytune's own engine: for vLLM on Ray see --ray-config",
        ),
        (
            ["--engine", "vllm", "--check", "--", "--port", "1"],
            "--port after --: manytune gives vLLM its address",
        ),
        (["--engine", "vllm", "--ray-config", "out"], "--ray-config needs --ray-adapters"),
        (["--check"], "--check is for --engine vllm"),
        (["--", "--max-loras", "4"], "'--max-loras': options after -- are for --engine vllm"),
        (["stray"], "'stray': options after -- are for --engine vllm"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(world, arguments, message):
    code, _, error = run(world, *arguments)
    assert code == 1 and message in error


def test_a_vllm_that_dies_is_reported_with_its_last_lines(world, tmp_path):
    vllm = tmp_path / "vllm"
    vllm.write_text(f"#!{sys.executable} -S\nimport sys\nsys.exit('ValueError: no free memory')\n")
    vllm.chmod(0o755)
    code, _, error = run(world, "--engine", "vllm", "--vllm", str(vllm))
    assert code == 1 and "vLLM ended with status 1. Its last lines: ValueError: no free memory" in error


def test_sigterm_unwinds_what_runs_so_that_vllm_ends_before_its_server():
    former, ended = signal.getsignal(signal.SIGTERM), []
    with pytest.raises(SystemExit) as left, unwound_by_sigterm():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            ended.append(True)
    assert left.value.code == 128 + signal.SIGTERM and ended
    assert signal.getsignal(signal.SIGTERM) is former
