"""What a worker passes over, what it doesn't, and how it says how it ended."""

import pytest
from tests.experiments.tiny_experiment import Reported, experiment

from manytune.errors import LockedError
from manytune.experiments.opening import open_workspace
from manytune.experiments.trials import Phase, Purpose
from manytune.experiments.worker import Outcome, Work, run_free, work_through
from manytune.store.locking import held


@pytest.fixture
def workspace(tmp_path):
    return open_workspace(experiment(tmp_path), Reported())


@pytest.fixture
def trial(workspace):
    return workspace.variants.trial("LoRA", rate=0.03, seed=0, steps=2, purpose=Purpose.SEARCH)


def test_a_trial_that_another_process_holds_is_passed_over(workspace, trial):
    with held(workspace.experiment.directory / "held" / trial.name):
        run_free(workspace, Phase.SEARCH, [trial])
    assert not trial.trained
    run_free(workspace, Phase.SEARCH, [trial])
    assert trial.trained


def test_a_run_directory_that_another_process_holds_is_an_error(workspace, trial):
    with held(trial.directory), pytest.raises(LockedError, match="another process is writing here"):
        run_free(workspace, Phase.SEARCH, [trial])


def test_work_is_the_same_after_its_way_through_json(workspace, trial):
    work = Work(workspace.experiment.content, True, Phase.SEARCH, (trial,))
    assert Work.from_json(work.to_json()) == work


def test_an_outcome_has_the_error_that_ended_the_work(workspace, trial):
    content = workspace.experiment.content
    assert work_through(Work(content, False, Phase.SEARCH, (trial,))) == Outcome(None)
    missing = Work({**content, "base": "nowhere"}, False, Phase.SEARCH, (trial,))
    outcome = work_through(missing)
    assert outcome.error is not None and "nowhere" in outcome.error
    assert Outcome.from_json(outcome.to_json()) == outcome
