"""What a Ray that doesn't start, or a worker that dies, becomes. Stands in for Ray, which may not be installed."""

import sys
import types

import pytest
from tests.experiments.tiny_experiment import Reported, experiment

from manytune.errors import RunError
from manytune.experiments.opening import open_workspace
from manytune.experiments.ray_runner import OnRay
from manytune.experiments.trials import Phase
from manytune.experiments.worker import Outcome


class Ray(types.ModuleType):
    """As much of Ray as the runner uses: tasks run here, and starts fail as often as a test says."""

    class exceptions:  # noqa: N801 - Ray's name
        class RayError(Exception):
            pass

    def __init__(self, *, failing_starts: int = 0, running: bool = False, dies: bool = False) -> None:
        super().__init__("ray")
        self.__spec__ = object()
        self.failing_starts, self.running, self.dies = failing_starts, running, dies
        self.starts = 0

    def is_initialized(self) -> bool:
        return self.running

    def init(self, **_: object) -> None:
        self.starts += 1
        if self.starts <= self.failing_starts:
            raise RuntimeError("Timed out waiting for a port.")
        self.running = True

    def shutdown(self) -> None:
        self.running = False

    def remote(self, **_: object):
        return lambda function: types.SimpleNamespace(remote=function)

    def get(self, outcomes):
        if self.dies:
            raise self.exceptions.RayError("killed for its memory.")
        return outcomes


def run(tmp_path, monkeypatch, ray, error=None):
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr("manytune.experiments.ray_runner._work", lambda path, directory: Outcome(error))
    workspace = open_workspace(experiment(tmp_path), Reported())
    OnRay(2).run(workspace, Phase.FINISH, [workspace.variants.trial("LoRA", rate=0.03, seed=0, steps=2)])


def test_a_start_that_fails_is_tried_once_more_and_ray_is_ended_again(tmp_path, monkeypatch):
    ray = Ray(failing_starts=1)
    run(tmp_path, monkeypatch, ray)
    assert (ray.starts, ray.running) == (2, False)


def test_a_ray_that_runs_already_is_used_and_left_running(tmp_path, monkeypatch):
    ray = Ray(running=True)
    run(tmp_path, monkeypatch, ray)
    assert (ray.starts, ray.running) == (0, True)


@pytest.mark.parametrize(
    ("ray", "failure", "message"),
    [
        (Ray(failing_starts=9), None, "Ray could not be started, or not be reached: Timed out"),
        (Ray(dies=True), None, "A Ray worker ended before its work: killed for its memory."),
        (Ray(), "step 3: the loss is nan.", "2 of 2 Ray workers failed: step 3: the loss is nan."),
    ],
)
def test_what_goes_wrong_is_said_and_what_is_done_is_kept(tmp_path, monkeypatch, ray, failure, message):
    with pytest.raises(RunError) as error:
        run(tmp_path, monkeypatch, ray, failure)
    assert str(error.value).startswith(message)
    assert str(error.value).endswith("the same command continues from there.")
    assert not ray.running
