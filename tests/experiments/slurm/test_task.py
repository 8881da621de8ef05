"""A task of the array: it runs its own trial alone, once, and keeps how it failed."""

import pytest
from tests.experiments.tiny_experiment import Reported, experiment

from manytune.errors import LockedError, RunError
from manytune.experiments.failures import failure_of
from manytune.experiments.opening import open_workspace
from manytune.experiments.runner import write_work
from manytune.experiments.slurm import task
from manytune.experiments.slurm.task import run_task
from manytune.experiments.trials import Phase
from manytune.store.locking import held


@pytest.fixture
def workspace(tmp_path):
    return open_workspace(experiment(tmp_path), Reported())


@pytest.fixture
def trials(workspace):
    found = [workspace.variants.trial("LoRA", rate=0.03, seed=seed, steps=2) for seed in (0, 1)]
    write_work(workspace, Phase.FINISH, found)
    return found


def test_a_task_runs_the_trial_at_its_place_and_a_second_time_loads_nothing(workspace, trials, monkeypatch):
    directory = workspace.experiment.directory
    run_task(directory, Phase.FINISH, 1)
    assert [workspace.record(trial.name) is not None for trial in trials] == [False, True]
    monkeypatch.delattr(task, "open_for")
    run_task(directory, Phase.FINISH, 1)


def test_a_failed_trial_is_recorded_until_it_has_a_result(workspace, trials):
    directory, name = workspace.experiment.directory, trials[0].name
    with held(trials[0].directory), pytest.raises(LockedError):
        run_task(directory, Phase.FINISH, 0)
    found = failure_of(directory, name)
    assert found is not None and "another process is writing here" in found.message
    run_task(directory, Phase.FINISH, 0)
    assert failure_of(directory, name) is None


def test_a_number_that_the_list_has_not_is_an_error(workspace, trials):
    with pytest.raises(RunError, match="has 2 trials, and this is task 2"):
        run_task(workspace.experiment.directory, Phase.FINISH, 2)
