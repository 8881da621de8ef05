"""A sweep on a Ray cluster whose head is killed and started again; `make ray-head` runs it.

    python -m tests.experiments.ray_head_check

Clusters take minutes to come up and go, so this isn't one of `make test`. It ends with an error at the first thing
that isn't as it should be: the command has to end with a sentence when its head is gone, and the same command on
another head has to train what has no record, and nothing else, and to end with the records of a sweep in one process.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from tests.experiments.tiny_experiment import content

from manytune.evaluation.records import RunRecord, read_record

RANKS = "1,2,3"
PATIENCE = 600.0  # seconds, on a machine that is busy
STEPS_OF_A_TRIAL = 80  # so that the head is killed while one is running


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def descendants(pid: int) -> list[int]:
    """The processes that one has started, and those that they have."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            parents.setdefault(parent, []).append(int(stat.parent.name))
    found, waiting = [], [pid]
    while waiting:
        for child in parents.get(waiting.pop(), []):
            found.append(child)
            waiting.append(child)
    return found


class Head:
    """A Ray head on this machine, of a Python's environment, with so many cores or as if it had."""

    def __init__(self, folder: Path, port: int, *, python: str = sys.executable, cores: int = 1) -> None:
        command = [str(Path(python).with_name("ray")), "start", "--head", "--block"]
        command += ["--port", f"{port}", "--num-cpus", f"{cores}", "--num-gpus", "0"]
        command += ["--include-dashboard", "false", "--temp-dir"]
        command += [str(folder), "--disable-usage-stats", "--ray-client-server-port", f"{free_port()}"]
        self._log = (folder.parent / f"{folder.name}.log").open("wb")
        self._process = subprocess.Popen(command, stdout=self._log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + PATIENCE
        while b"Ray runtime started" not in Path(self._log.name).read_bytes():
            assert self._process.poll() is None, Path(self._log.name).read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def kill(self) -> None:
        """As when its machine is lost: the head, what it started, and the command that waits for them."""
        for pid in [*descendants(self._process.pid), self._process.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._log.close()


@contextmanager
def running_head(folder: Path, port: int, **more: Any) -> Iterator[Head]:
    head = Head(folder, port, **more)
    try:
        yield head
    finally:
        head.kill()


def write_recipe(directory: Path) -> Path:
    directory.mkdir()
    recipe = content(directory)
    recipe["training"] |= {"max_steps": STEPS_OF_A_TRIAL, "checkpoint_every": 20, "eval_every": None}
    recipe["compare"].pop("systems")
    (directory / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return directory / "recipe.yaml"


def command(recipe: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "manytune", "sweep", str(recipe), "--ranks", RANKS, "--json", *more]


def records(recipe: Path) -> dict[str, RunRecord]:
    kept = recipe.parent / "experiment" / "records"
    return {str(file.relative_to(kept)): read_record(file) for file in sorted(kept.rglob("*.json"))}


def finished(started: subprocess.Popen[str]) -> str:
    """What it said."""
    _, said = started.communicate(timeout=PATIENCE)
    return said


def start(recipe: Path, port: int) -> subprocess.Popen[str]:
    environment: dict[str, Any] = {**os.environ, "RAY_ADDRESS": f"127.0.0.1:{port}", "COLUMNS": "200"}
    return subprocess.Popen(
        command(recipe, "--on", "ray"),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def main() -> int:
    os.environ |= {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
    with tempfile.TemporaryDirectory(prefix="ray-") as scratch:  # Ray's sockets have short paths
        directory = Path(scratch)
        alone, on_ray = write_recipe(directory / "alone"), write_recipe(directory / "on-ray")
        subprocess.run(command(alone), check=True, capture_output=True)
        expected = records(alone)
        port = free_port()
        with running_head(directory / "first", port) as head:
            started = start(on_ray, port)
            deadline = time.monotonic() + PATIENCE
            while not [name for name in records(on_ray) if name.startswith("r=")]:
                assert started.poll() is None, finished(started)
                assert time.monotonic() < deadline
                time.sleep(0.02)
            head.kill()
            killed = time.monotonic()
            said = finished(started)
        done = [name for name in records(on_ray) if name.startswith("r=")]
        print(
            f"the head was killed when {len(done)} of {len(RANKS.split(','))} trainings were recorded; the command "
            f"ended {time.monotonic() - killed:.0f} s later with status {started.returncode}:"
        )
        print("    " + said.strip().splitlines()[-1])
        assert started.returncode == 1 and "error:" in said and "the same command continues" in said, said
        left = len(RANKS.split(",")) - len(done)
        assert left, "the head was killed too late"
        with running_head(directory / "second", port):
            again = start(on_ray, port)
            said = finished(again)
        assert again.returncode == 0, said
        assert f"{left} trainings on Ray" in said or left == 1, said
        assert not [name for name in done if re.search(f"{name.removesuffix('.json')} on ", said)], said
        found = records(on_ray)
        assert list(found) == list(expected)
        for name, one in expected.items():
            other = found[name]
            for what in ("answers", "probes", "curves", "validation"):
                assert getattr(one, what) == getattr(other, what), (name, what)
        print(
            f"the same command on another head trained the other {left}; all {len(found)} records are the same"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
