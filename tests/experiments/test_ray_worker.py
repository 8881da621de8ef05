"""What a worker on Ray answers; here it is an object of this process."""

import os

import pytest
from tests.experiments.tiny_experiment import Reported, experiment

from manytune.experiments.opening import open_workspace
from manytune.experiments.ray_worker import RayWorker
from manytune.experiments.runner import write_work
from manytune.experiments.trials import Phase
from manytune.store.locking import held


@pytest.fixture(autouse=True)
def _as_before(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.chdir(tmp_path)


def test_a_worker_without_a_gpu_sees_none_whatever_the_machine_has(tmp_path):
    assert RayWorker("work.json", str(tmp_path), gpu=True).where().endswith(", GPU 3")
    assert "GPU" not in RayWorker("work.json", str(tmp_path), gpu=False).where()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize("missing", ["work.json", "elsewhere"])
def test_a_machine_that_does_not_see_the_files_says_which(tmp_path, missing):
    directory = tmp_path / missing if missing == "elsewhere" else tmp_path
    found = RayWorker(str(tmp_path / "work.json"), str(directory), gpu=True).open()
    assert found.error == (
        f"{tmp_path / missing}: no such file or directory. Every machine has to see it under the same path."
    )


def test_trials_are_run_over_one_base_and_a_mistake_is_an_answer(tmp_path):
    workspace = open_workspace(experiment(tmp_path), Reported())
    trials = [workspace.variants.trial("LoRA", rate=0.03, seed=seed, steps=2) for seed in (0, 1)]
    work = write_work(workspace, Phase.SEARCH, trials)
    worker = RayWorker(str(work), str(tmp_path), gpu=True)
    assert worker.open().error is None
    with held(trials[0].directory):
        assert "another process is writing here" in (worker.run(0) or "")
    assert worker.run(1) is None
    assert [trial.trained for trial in trials] == [False, True]
