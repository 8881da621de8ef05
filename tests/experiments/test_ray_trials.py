"""Which trial is tried again when a worker is lost, and when that ends. Ray itself is a stand-in."""

import sys
from types import SimpleNamespace

import pytest
from tests.experiments.fake_ray import FakeRay

from manytune.errors import RunError
from manytune.experiments.failures import Failure
from manytune.experiments.ray_connection import HeadLostError
from manytune.experiments.ray_trials import RayTrials
from manytune.experiments.ray_worker import Opened

NAMES = ["a", "b", "c"]


class Worker:
    """Runs nothing; the trial `b` fails if it is to."""

    def __init__(self, failing: dict[int, str], error: str | None) -> None:
        self.failing, self.error = failing, error

    def open(self) -> Opened:
        return Opened("node7, GPU 1", self.error)

    def run(self, place: int) -> str | None:
        return self.failing.get(place)


@pytest.fixture
def run(monkeypatch):
    """What is said of three trials, which of them failed, and the actors that were started."""

    def run(*, lost=None, failing=None, error=None, workers=2, require_head=lambda: None):
        ray = FakeRay(lost=lost)
        monkeypatch.setitem(sys.modules, "ray", ray)
        said: list[str] = []
        start = ray.remote(num_gpus=1)(Worker).remote
        trials = RayTrials(lambda: start(failing or {}, error), workers, NAMES, said.append, require_head)
        try:
            trials.run()
        except HeadLostError:
            return SimpleNamespace(said=said, failed="the head is lost", actors=ray.actors)
        except RunError as raised:
            return SimpleNamespace(said=said, failed=str(raised), actors=ray.actors)
        return SimpleNamespace(said=said, failed=trials.failed, actors=ray.actors)

    return run


def test_every_trial_is_run_once_by_no_more_workers_than_are_allowed_and_they_end(run):
    found = run()
    assert sorted(line for line in found.said if " on " in line) == [
        f"{name} on node7, GPU 1" for name in NAMES
    ]
    assert [line for line in found.said if "done" in line][-1].endswith("(3 of 3)")
    assert not found.failed and len(found.actors) == 2 and all(actor.killed for actor in found.actors)


def test_no_more_workers_are_started_than_trials_wait(run):
    assert len(run(workers=8).actors) == 3


def test_a_lost_worker_costs_one_retry_which_is_said_with_the_reason(run):
    found = run(lost={("run", 0): 1}, workers=1)
    assert not found.failed and len(found.actors) == 2
    assert "the worker of a on node7, GPU 1 was lost; retry 1 of 2: Its process was killed." in found.said
    assert [line for line in found.said if line.startswith("a on")] == ["a on node7, GPU 1"] * 2
    assert [line for line in found.said if line.startswith("b on")] == ["b on node7, GPU 1"]


def test_a_trial_whose_workers_are_lost_three_times_fails_and_the_others_go_on(run):
    found = run(lost={("run", 1): 9})
    assert found.failed == {
        "b": Failure(
            "3 workers that ran it were lost, the last on node7, GPU 1: Its process was killed.", lost=3
        )
    }
    assert {"a is done", "c is done"} <= {line.partition(" (")[0] for line in found.said}


def test_a_trial_that_fails_of_itself_is_not_tried_again_and_the_others_go_on(run):
    found = run(failing={1: "step 3: the loss is nan."})
    assert found.failed == {"b": Failure("step 3: the loss is nan.")}
    assert [line for line in found.said if line.startswith("b on")] == ["b on node7, GPU 1"]
    assert any(line.startswith("c is done") for line in found.said)


def test_a_mistake_that_keeps_the_experiment_from_opening_ends_everything_at_once(run):
    found = run(error="rows.jsonl: no such file.")
    assert found.failed == "node7, GPU 1: rows.jsonl: no such file."
    assert all(actor.killed for actor in found.actors)


def test_workers_that_die_while_they_open_the_experiment_are_given_up(run):
    found = run(lost={("open",): 99}, workers=1)
    assert found.failed == (
        "3 workers were lost while they opened the experiment; the last: Its process was killed."
    )
    assert len(found.actors) == 3
    assert not run(lost={("open",): 2}, workers=1).failed


def test_without_its_head_nothing_is_asked_of_ray_any_more(run):
    """A worker that is lost with it is no retry, and neither started again nor ended, for which the head is asked."""

    def gone():
        raise HeadLostError("gone")

    found = run(lost={("run", 0): 1}, workers=1, require_head=gone)
    assert found.failed == "the head is lost" and not [line for line in found.said if "was lost" in line]
    assert len(found.actors) == 1 and not found.actors[0].killed
