"""Trials on a real Ray: a cluster of this machine that declares two GPUs, and one of its workers killed."""

import gc
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from tests.experiments.tiny_experiment import Reported, experiment

from manytune.evaluation.records import read_record
from manytune.experiments.opening import open_workspace
from manytune.experiments.ray_connection import start_ray
from manytune.experiments.ray_resources import Share
from manytune.experiments.ray_runner import OnRay, start_worker
from manytune.experiments.runner import InTurn
from manytune.experiments.sweep import sweep, sweep_experiment

ray = pytest.importorskip("ray", reason="Ray isn't installed here: pip install 'manytune[cluster]'")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "ignore:subprocess .* is still running:ResourceWarning"
    ),  # Ray's own, as they end
]


@pytest.fixture(scope="module")
def cluster():
    patched = pytest.MonkeyPatch()
    patched.setenv("OMP_NUM_THREADS", "1")  # its processes have the environment of their start
    start_ray(num_cpus=2, num_gpus=2, log_to_driver=False)
    yield
    ray.shutdown()
    patched.undo()
    gc.collect()  # what Ray leaves behind belongs to these tests


@pytest.mark.usefixtures("cluster")
def test_each_worker_sees_the_gpu_that_it_has_a_part_of_and_no_other():
    workers = [start_worker(ray, Share(cpus=0, gpus=0.5, workers=4), Path("work.json")) for _ in range(4)]
    found = ray.get([worker.where.remote() for worker in workers])
    assert sorted(where.rpartition(", ")[2] for where in found) == ["GPU 0", "GPU 0", "GPU 1", "GPU 1"]
    for worker in workers:
        ray.kill(worker)


def swept(directory: Path, runner) -> tuple[Reported, dict]:
    """What is said of a sweep, and its records."""
    reported = Reported()
    workspace = open_workspace(sweep_experiment(experiment(directory), [1, 2], []), reported, ranks=True)
    sweep(workspace, runner)
    kept = directory / "experiment" / "records"
    return reported, {str(file.relative_to(kept)): read_record(file) for file in sorted(kept.rglob("*.json"))}


def kill_the_holder_of(directory: Path) -> None:
    """Kill the process that first holds a directory."""
    while not directory.is_dir():
        time.sleep(0.002)
    inode = f":{directory.stat().st_ino}"
    while True:
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            if fields[1] == "FLOCK" and fields[5].endswith(inode):
                os.kill(int(fields[4]), signal.SIGKILL)
                return
        time.sleep(0.002)


@pytest.mark.usefixtures("cluster")
def test_a_sweep_whose_worker_is_killed_costs_one_retry_and_equals_the_serial_one(tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "ray").mkdir()
    _, expected = swept(tmp_path / "here", InTurn())
    held = tmp_path / "ray" / "experiment" / "held" / "r=1" / "lr-0.01-seed-0"
    threading.Thread(target=kill_the_holder_of, args=(held,), daemon=True).start()
    reported, found = swept(tmp_path / "ray", OnRay(2))
    lost = [line for line in reported.lines if " was lost" in line]
    assert len(lost) == 1 and "r=1/lr-0.01-seed-0" in lost[0] and "retry 1 of 2" in lost[0]
    assert list(found) == list(expected) and len(found) == 3
    for name, one in expected.items():
        other = found[name]
        assert (one.answers, one.probes, one.curves, one.validation) == (
            other.answers,
            other.probes,
            other.curves,
            other.validation,
        ), name
        if name != "base.json":
            assert other.ran_on.visible in ("0", "1") and one.ran_on.host == other.ran_on.host
