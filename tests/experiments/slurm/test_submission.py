"""Sweeps and comparisons as jobs of a Slurm that runs them here: the records are those of one process."""

import json
import sys
from pathlib import Path

import pytest
import yaml
from tests.experiments.slurm.fake_slurm import FakeSlurm
from tests.experiments.slurm.forked_python import forked_python
from tests.experiments.tiny_experiment import Reported, content, experiment
from typer.testing import CliRunner

from manytune.cli.main import build_app
from manytune.evaluation.records import read_record
from manytune.experiments.opening import open_workspace
from manytune.experiments.recipe import experiment_from
from manytune.experiments.slurm.submission import jobs_for
from manytune.experiments.sweep import sweep_experiment
from manytune.experiments.trials import Phase, train


def call(*arguments: str):
    return CliRunner().invoke(build_app(), list(arguments), catch_exceptions=False)


def write_recipe(directory: Path, **compare) -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / "recipe.yaml"
    path.write_text(yaml.safe_dump(content(directory, **compare), sort_keys=False))
    return path


def records(recipe: Path):
    kept = recipe.parent / "experiment" / "records"
    return {str(file.relative_to(kept)): read_record(file) for file in sorted(kept.rglob("*.json"))}


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, one in expected.items():
        other = found[name]
        parts = ("answers", "probes", "curves", "validation", "steps")
        assert [getattr(other, part) for part in parts] == [getattr(one, part) for part in parts], name


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """It finds the tests' process where a script names Python."""
    found = FakeSlurm(tmp_path / "slurm")
    for name, value in found.environment.items():
        monkeypatch.setenv(name, value)
    with forked_python(tmp_path) as python:
        monkeypatch.setattr(sys, "executable", str(python))
        yield found


SWEEP = ("--ranks", "1,2", "--on", "slurm")


def test_a_sweep_equals_the_serial_one_resumes_what_broke_off_and_later_runs_what_is_missing(slurm, tmp_path):
    here, there = write_recipe(tmp_path / "here"), write_recipe(tmp_path / "there")
    assert call("sweep", str(here), "--ranks", "1,2").exit_code == 0
    done = call("sweep", str(there), *SWEEP, "--workers", "1")
    assert done.exit_code == 0, done.output
    assert "Submitted: prepare finish as 100, finish as 101, report as 102." in done.stdout
    assert_same(records(there), records(here))
    folder = there.parent / "experiment"
    assert "is enough." in (folder / "slurm" / "logs" / "stage-102.log").read_text()
    assert (folder / "report.html").is_file()
    assert [call.partition(" slurm")[0] for call in slurm.calls] == [
        "--parsable stage.sbatch finish",
        "--parsable --dependency=afterok:100 --kill-on-invalid-dep=yes --array=0-1%1 trials.sbatch finish",
        "--parsable --dependency=afterany:101 stage.sbatch report",
    ]
    # A trial that was killed after a checkpoint, as if preempted, and whose task is run again.
    name = "r=2/lr-0.01-seed-0"
    trial = break_off(there, name)
    done = call("sweep", str(there), *SWEEP, "--json")
    assert json.loads(done.stdout)["trials"] == {"finish": 1}
    assert [line.split()[-3:] for line in slurm.calls[3:]] == [
        ["--array=1", "trials.sbatch", "finish"],
        ["--dependency=afterany:103", "stage.sbatch", "report"],
    ]
    assert trial.scores()[0].resumed_from == 2
    assert records(there)[f"{name}.json"].answers == records(here)[f"{name}.json"].answers


def break_off(recipe: Path, name: str):
    """Leave a trial as a kill after its third step does: with a checkpoint, without a record."""
    import shutil

    workspace = open_workspace(
        sweep_experiment(experiment(recipe.parent), [1, 2], []), Reported(), ranks=True
    )
    trial = workspace.variants.trial("r=2", rate=0.01, seed=0, steps=workspace.steps)
    assert trial.name == name
    shutil.rmtree(trial.directory)
    workspace.record_path(name).unlink()

    def stop(report):
        if getattr(report, "step", 0) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(trial, workspace.base, adapters=True, report=stop)
    return trial
