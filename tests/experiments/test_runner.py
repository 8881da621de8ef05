"""Trials in several processes: what is reported of a process that failed."""

import json
import sys
from types import SimpleNamespace

import pytest
from tests.experiments.forked import Forked
from tests.experiments.tiny_experiment import Reported, experiment

from manytune.errors import RunError
from manytune.experiments import runner
from manytune.experiments.opening import open_workspace
from manytune.experiments.runner import InProcesses, check_outcomes
from manytune.experiments.trials import Phase
from manytune.experiments.worker import Outcome


@pytest.mark.parametrize(
    ("outcomes", "message"),
    [
        (
            ["a", None, None],
            "1 of 3 workers failed: a What is done is kept: the same command continues from there.",
        ),
        (["a", "b", "a"], "3 of 3 workers failed: a b What is done is kept"),
    ],
)
def test_every_error_is_reported_once(outcomes, message):
    with pytest.raises(RunError) as error:
        check_outcomes([Outcome(one) for one in outcomes], "workers")
    assert str(error.value).startswith(message)


def test_no_error_is_none():
    check_outcomes([Outcome(), Outcome()], "workers")


def test_a_worker_that_cannot_do_its_work_reports_its_error(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "subprocess", SimpleNamespace(Popen=Forked))
    workspace = open_workspace(experiment(tmp_path), Reported())
    trials = [workspace.variants.trial("LoRA", rate=0.03, seed=0, steps=2)]
    facts = workspace.experiment.directory / "experiment.json"
    facts.write_text(json.dumps({**json.loads(facts.read_text()), "train": "other rows"}))
    with pytest.raises(
        RunError, match=r"1 of 1 workers failed: .* train changed since this experiment began"
    ):
        InProcesses(1).run(workspace, Phase.FINISH, trials)


def test_a_worker_that_dies_is_reported_with_its_exit_status(tmp_path, monkeypatch):
    workspace = open_workspace(experiment(tmp_path), Reported())
    trials = [workspace.variants.trial("LoRA", rate=0.03, seed=0, steps=2)]
    dying = runner.subprocess.Popen

    def start(command, **options):
        return dying([sys.executable, "-c", "import os; os.abort()"], **options)

    monkeypatch.setattr(runner.subprocess, "Popen", start)
    with pytest.raises(
        RunError, match="2 of 2 workers failed: it ended with exit status -6; what it printed"
    ):
        InProcesses(2).run(workspace, Phase.FINISH, trials)


def test_each_worker_sees_one_of_several_gpus_in_turn(tmp_path, monkeypatch):
    workspace = open_workspace(experiment(tmp_path), Reported())
    trials = [workspace.variants.trial("LoRA", rate=0.03, seed=0, steps=2)]
    seen = []
    none = SimpleNamespace(wait=lambda: 0, terminate=lambda: None)
    start = lambda command, env: seen.append(env.get("CUDA_VISIBLE_DEVICES")) or none  # noqa: E731
    monkeypatch.setattr(runner, "subprocess", SimpleNamespace(Popen=start))
    for count, visible, expected in [
        (2, None, ["0", "1", "0"]),
        (2, "4,7", ["4", "7", "4"]),
        (1, None, [None] * 3),
    ]:
        monkeypatch.setattr(runner.torch.cuda, "device_count", lambda count=count: count)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        seen.clear()
        with pytest.raises(RunError, match="3 of 3 workers failed"):
            InProcesses(3).run(workspace, Phase.FINISH, trials)
        assert seen == expected
