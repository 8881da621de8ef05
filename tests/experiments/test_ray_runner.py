"""What a Ray that doesn't start, and trials that fail on it, become. Stands in for Ray, which may not be installed."""

import sys

import pytest
from tests.experiments.fake_ray import FakeRay
from tests.experiments.tiny_experiment import Reported, experiment

from manytune.errors import RunError
from manytune.experiments import ray_runner
from manytune.experiments.failures import Failure, failure_of
from manytune.experiments.opening import open_workspace
from manytune.experiments.ray_runner import OnRay
from manytune.experiments.ray_worker import Opened
from manytune.experiments.trials import Phase


class Worker:
    """Trains nothing."""

    error: str | None = None

    def __init__(self, work: str, directory: str, *, gpu: bool) -> None:
        self.gpu = gpu

    def open(self) -> Opened:
        return Opened("node7")

    def run(self, place: int) -> str | None:
        return self.error


@pytest.fixture
def workspace(tmp_path):
    return open_workspace(experiment(tmp_path), Reported())


@pytest.fixture
def trial(workspace):
    return workspace.variants.trial("LoRA", rate=0.03, seed=0, steps=2)


@pytest.fixture
def run(workspace, trial, monkeypatch):
    def run(ray, error=None, runner=None):
        monkeypatch.setitem(sys.modules, "ray", ray)
        monkeypatch.setattr(ray_runner, "RayWorker", type("_Worker", (Worker,), {"error": error}))
        (runner or OnRay(2)).run(workspace, Phase.FINISH, [trial])

    return run


def test_a_start_that_fails_is_tried_once_more_and_ray_is_ended_again(run):
    ray = FakeRay(failing_starts=1)
    run(ray)
    assert (ray.starts, ray.running) == (2, False)


def test_a_ray_that_runs_already_is_used_and_left_running(run):
    ray = FakeRay(running=True)
    run(ray)
    assert (ray.starts, ray.running) == (0, True)


def test_workers_ask_for_their_share_and_say_what_it_is(run, workspace):
    ray = FakeRay(nodes=({"CPU": 8.0, "GPU": 2.0},))
    run(ray, runner=OnRay(gpus=0.5))
    (actor,) = ray.actors
    assert actor.options == {"num_cpus": 2, "num_gpus": 0.5} and actor._actor.gpu
    assert "1 trainings on Ray, 1 at once with 0.5 GPU and 2 cores each" in workspace.reporter.lines


def test_what_is_done_needs_no_ray(run, workspace, trial, monkeypatch):
    workspace.run(trial, Phase.FINISH)
    ray = FakeRay(failing_starts=9)
    run(ray)
    assert ray.starts == 0


def test_a_cluster_that_may_ask_for_a_token_is_said_to(run, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    for mode, is_said in (("", True), ("token", False)):
        monkeypatch.setenv("RAY_AUTH_MODE", mode) if mode else monkeypatch.delenv("RAY_AUTH_MODE", False)
        with pytest.raises(RunError) as error:
            run(FakeRay(failing_starts=9))
        assert ("If the cluster asks for a token" in str(error.value)) == is_said
        assert "RAY_AUTH_MODE=token. What is done is kept" in str(error.value) or not is_said


@pytest.mark.parametrize(
    ("ray", "failure", "message"),
    [
        (FakeRay(failing_starts=9), None, "Ray could not be started, or not be reached: Timed out"),
        (
            FakeRay(lost={("open",): 9}),
            None,
            "Ray: 3 workers were lost while they opened the experiment; the last: Its process was killed.",
        ),
        (
            FakeRay(),
            "step 3: the loss is nan.",
            "1 of 1 trials failed. LoRA/lr-0.03-seed-0: step 3: the loss is nan.",
        ),
    ],
)
def test_what_goes_wrong_is_said_and_what_is_done_is_kept(run, ray, failure, message):
    with pytest.raises(RunError) as error:
        run(ray, failure)
    assert str(error.value).startswith(message)
    assert str(error.value).endswith("the same command continues from there.")
    assert not ray.running


def test_a_trial_that_failed_is_recorded_until_it_has_a_result(run, workspace, trial):
    with pytest.raises(RunError, match="1 of 1 trials failed"):
        run(FakeRay(lost={("run", 0): 3}))
    found = failure_of(workspace.experiment.directory, trial.name)
    message = "3 workers that ran it were lost, the last on node7: Its process was killed."
    assert found == Failure(message, lost=3)
    run(FakeRay())
    assert failure_of(workspace.experiment.directory, trial.name) is None
