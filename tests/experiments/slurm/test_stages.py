"""What the jobs before and after an array do: they list trials, and say which have no result and why."""

import pytest
from tests.experiments.tiny_experiment import Reported, experiment

from manytune.errors import RunError
from manytune.experiments.failures import Failure, keep_failure
from manytune.experiments.opening import open_workspace
from manytune.experiments.runner import work_file
from manytune.experiments.slurm.stages import PreparedError, Stages
from manytune.experiments.trials import Phase
from manytune.experiments.worker import Work


@pytest.fixture
def workspace(tmp_path):
    return open_workspace(experiment(tmp_path), Reported())


@pytest.fixture
def trials(workspace):
    return [workspace.variants.trial("LoRA", rate=0.03, seed=seed, steps=2) for seed in (0, 1)]


def test_the_phase_that_is_prepared_is_listed_with_what_is_asked(workspace, trials):
    with pytest.raises(PreparedError, match="2 of 2 trials are to be run"):
        Stages.named("finish").run(workspace, Phase.FINISH, trials)
    written = work_file(workspace.experiment.directory, Phase.FINISH).read_text()
    assert Work.from_json(written) == Work(
        workspace.experiment.content, False, Phase.FINISH, tuple(trials), workspace.digest
    )


def test_nothing_is_trained_for_the_report_and_what_is_missing_is_named_with_its_error(workspace, trials):
    keep_failure(workspace.experiment.directory, trials[1].name, Failure("the disk is full."))
    with pytest.raises(RunError) as error:
        Stages.named("report").run(workspace, Phase.FINISH, trials)
    logs = workspace.experiment.directory / "slurm" / "logs"
    assert str(error.value) == (
        "2 of 2 trials have no result: LoRA/lr-0.03-seed-0 (no error is recorded); LoRA/lr-0.03-seed-1 (the disk is "
        f"full). Their logs are in {logs}. The same command submits them again."
    )
    assert not trials[0].trained


def test_what_has_been_run_is_read(workspace, trials):
    for trial in trials:
        workspace.search(trial)
    Stages.named("finish").run(workspace, Phase.SEARCH, trials)
    Stages.named("report").run(workspace, Phase.SEARCH, [])
