"""Sweeps and comparisons as jobs of a Slurm that runs them here: the records are those of one process."""

import json
import sys
from pathlib import Path

import pytest
import yaml
from tests.experiments.slurm.fake_slurm import FakeSlurm
from tests.experiments.tiny_experiment import Reported, content, experiment
from tests.forked_python import forked_python
from tests.random_cases import DEPTH
from typer.testing import CliRunner

from manytune.cli.main import build_app
from manytune.errors import DivergedError
from manytune.evaluation.records import read_record
from manytune.experiments.opening import open_workspace
from manytune.experiments.runner import write_work
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
    """It finds a process that has imported everything where a script names Python."""
    found = FakeSlurm(tmp_path / "slurm")
    for name, value in found.environment.items():
        monkeypatch.setenv(name, value)
    with forked_python() as python:
        monkeypatch.setattr(sys, "executable", str(python))
        yield found


SWEEP = ("--ranks", "1,2", "--on", "slurm")


def break_off(recipe: Path):
    """Leave a trial as a kill after its third step does, such as a preemption's: with a checkpoint and no result."""
    workspace = open_workspace(
        sweep_experiment(experiment(recipe.parent), [1, 2], []), Reported(), ranks=True
    )
    trial = workspace.variants.trial("r=2", rate=0.01, seed=0, steps=workspace.steps)

    def stop(report):
        if getattr(report, "step", 0) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(trial, workspace.base, adapters=True, report=stop)
    return trial


def test_a_sweep_equals_the_serial_one_and_resumes_what_was_preempted(slurm, tmp_path):
    here, there = write_recipe(tmp_path / "here"), write_recipe(tmp_path / "there")
    assert call("sweep", str(here), "--ranks", "1,2").exit_code == 0
    preempted = break_off(there)
    done = call("sweep", str(there), *SWEEP, "--workers", "1")
    assert done.exit_code == 0, done.output
    assert "Submitted: prepare finish as 100, finish as 101, report as 102." in done.stdout
    assert "Trials to run: 2 for finish." in done.stdout and "No GPU is asked for" in done.stdout
    assert slurm.calls == [
        "--parsable stage.sbatch finish",
        "--parsable --dependency=afterok:100 --kill-on-invalid-dep=yes --array=0-1%1 trials.sbatch finish",
        "--parsable --dependency=afterany:101 stage.sbatch report",
    ]
    assert_same(records(there), records(here))
    assert preempted.scores()[0].resumed_from == 2
    folder = there.parent / "experiment"
    assert "is enough." in (folder / "slurm" / "logs" / "stage-102.log").read_text()
    assert (folder / "report.html").is_file()
    # The same command runs what is missing alone.
    (folder / "records" / f"{preempted.name}.json").unlink()
    again = call("sweep", str(there), *SWEEP, "--dry-run", "--json")
    assert json.loads(again.stdout)["trials"] == {"finish": 1}
    assert "--array=1 trials.sbatch" in (folder / "slurm" / "submit.sh").read_text()


if DEPTH > 1:  # five jobs that load a base each

    def test_a_comparison_equals_the_serial_one(slurm, tmp_path):
        systems = {"full": {"learning_rates": [0.003, 0.03]}, "LoRA": {"learning_rates": [0.03]}}
        here, there = (write_recipe(tmp_path / name, systems=systems) for name in ("here", "there"))
        assert call("compare", str(here)).exit_code == 0
        done = call("compare", str(there), "--on", "slurm", "--cpus-per-trial", "1")
        assert done.exit_code == 0, done.output
        assert "Trials to run: 2 for search, 2 for finish." in done.stdout
        assert_same(records(there), records(here))
        assert (there.parent / "experiment" / "report.html").is_file()


def jobs(recipe: Path, ranks: bool = False, **compare) -> list[str]:
    return [
        f"{job.name} {job.places}" if job.places else job.name
        for job in jobs_for(experiment(recipe.parent, **compare), ranks=ranks)
    ]


def test_a_comparison_searches_first_and_a_search_that_is_missing_has_all_results_run_after_it(tmp_path):
    recipe = write_recipe(tmp_path / "run")
    assert jobs(recipe, seeds=[0, 1]) == [
        "prepare search",
        "search (0, 1)",
        "prepare finish",
        "finish (0, 1, 2, 3)",
        "report",
    ]
    # Nothing is searched where there is one rate each.
    one = {"LoRA": {"learning_rates": [0.03]}}
    assert jobs(recipe, systems=one) == ["prepare finish", "finish (0,)", "report"]


def test_what_is_listed_is_compared_with_what_is_there(tmp_path):
    recipe = write_recipe(tmp_path / "run")
    workspace = open_workspace(experiment(recipe.parent), Reported())
    trials = [workspace.variants.trial("LoRA", rate=0.03, seed=seed, steps=2) for seed in (0, 1)]
    write_work(workspace, Phase.SEARCH, trials)
    trials[0].keep_divergence(DivergedError("step 1: the loss is nan."))
    assert jobs(recipe)[:2] == ["search (1,)", "prepare finish"]
    workspace.search(trials[1])
    write_work(workspace, Phase.FINISH, trials)
    assert jobs(recipe) == ["finish (0, 1)", "report"]
    workspace.run(trials[1], Phase.FINISH)
    assert jobs(recipe) == ["finish (0,)", "report"]
    # Of another recipe, or for a sweep's records, nothing is listed.
    assert jobs(recipe, limit=1)[0] == jobs(recipe, ranks=True)[0] == "prepare search"


def said(done) -> str:
    return " ".join(done.output.split())


def test_without_slurm_the_scripts_are_kept_and_a_sentence_says_where_they_are(tmp_path, monkeypatch):
    recipe = write_recipe(tmp_path / "run")
    monkeypatch.setenv("PATH", "/nowhere")
    done = call("sweep", str(recipe), *SWEEP)
    script = recipe.parent / "experiment" / "slurm" / "submit.sh"
    assert done.exit_code == 1
    assert "needs Slurm's sbatch, and this machine has none. The scripts are kept" in said(done)
    assert f"bash{script}" in said(done).replace(" ", "")
    assert script.is_file()
    # They don't keep the experiment from beginning in its directory.
    open_workspace(experiment(recipe.parent), Reported())


def test_a_dry_run_submits_nothing(tmp_path, monkeypatch):
    recipe = write_recipe(tmp_path / "run")
    slurm = FakeSlurm(tmp_path / "slurm")
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    done = call("sweep", str(recipe), *SWEEP, "--dry-run", "--slurm-options", "--gres=gpu:1")
    assert done.exit_code == 0 and not slurm.calls
    assert "Nothing is submitted. To submit it: bash" in said(done) and "No GPU" not in done.output
    assert "#SBATCH --gres=gpu:1\n" in (recipe.parent / "experiment/slurm/stage.sbatch").read_text()


def test_what_slurm_refuses_and_what_is_still_in_its_queue_is_said(tmp_path, monkeypatch):
    recipe = write_recipe(tmp_path / "run")
    slurm = FakeSlurm(tmp_path / "slurm")
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    slurm.refuse()
    done = call("sweep", str(recipe), *SWEEP)
    assert done.exit_code == 1
    assert "sbatch refused a job: sbatch: error: Batch job submission failed: Invalid account." in said(done)
    (recipe.parent / "experiment" / "slurm" / "jobs").write_text("100\n101\n")
    slurm.queue("101_3\n")
    done = call("sweep", str(recipe), *SWEEP)
    assert done.exit_code == 1
    assert "still in Slurm's queue: 101_3. Wait for them, or run: scancel 100 101" in said(done)
