"""Trainings that diverge while a learning rate is searched for."""

import json
import math

import pytest
from tests.experiments.tiny_experiment import Reported, content

from manytune.errors import DivergedError, RunError
from manytune.experiments.opening import open_workspace
from manytune.experiments.recipe import experiment_from
from manytune.experiments.trials import Divergence, Purpose
from manytune.experiments.workspace import Workspace


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    found = content(tmp_path)
    found["training"]["warmup"] = 0.0  # so that the first step has the whole rate
    return open_workspace(experiment_from(found), Reported())


def diverging(workspace: Workspace, *, steps: int):
    return workspace.variants.trial("full", rate=1e30, seed=0, steps=steps, purpose=Purpose.SEARCH)


def test_a_training_that_diverges_leaves_its_error_and_isnt_tried_again(workspace):
    trial = diverging(workspace, steps=3)
    assert workspace.search(trial) == math.inf
    assert isinstance(trial.divergence, Divergence)
    assert trial.divergence.message.startswith("step 2: ")  # the first update is what spoils the weights
    kept = json.loads((trial.directory / "diverged.json").read_text())
    assert kept == {"message": trial.divergence.message}
    assert workspace.search(trial) == math.inf
    assert workspace.reporter.trained() == [trial.name]


def test_a_validation_loss_that_is_not_finite_loses_against_every_other(workspace):
    trial = workspace.variants.trial("full", rate=0.01, seed=0, steps=1, purpose=Purpose.SEARCH)
    assert math.isfinite(workspace.search(trial))
    scores = trial.directory / "scores.json"  # as if the last update had spoiled the weights
    scores.write_text(json.dumps({**json.loads(scores.read_text()), "validation_loss": math.nan}))
    assert workspace.search(trial) == math.inf


def test_a_training_that_fails_otherwise_is_no_divergence(workspace):
    trial = workspace.variants.trial("LoRA", rate=0.03, seed=0, steps=1)
    trial.directory.mkdir(parents=True)
    (trial.directory / "thesis.txt").write_text("precious")
    with pytest.raises(RunError, match="isn't empty and holds no run") as error:
        workspace.search(trial)
    assert not isinstance(error.value, DivergedError) and trial.divergence is None


def test_an_experiment_keeps_the_date_that_its_chat_template_writes(tmp_path, monkeypatch):
    found = content(tmp_path)
    template = (
        "{{ strftime_now('%A') }} {% for m in messages %}{{ m.content }}<end>{% endfor %}"
        "{% if add_generation_prompt %}{% endif %}"
    )
    (tmp_path / "base" / "chat_template.jinja").write_text(template)
    asked = []
    for day in ("2026-03-05", "2026-03-06"):
        monkeypatch.setattr("manytune.training.dates.now", lambda day=day: day)
        opened = open_workspace(experiment_from(found), Reported())
        assert opened.experiment.recipe.data.date == "2026-03-05"
        assert opened.variants.trial("LoRA", rate=0.03, seed=0, steps=1).any_recipe.data.date == "2026-03-05"
        asked.append([question.prompt_ids for question in opened.questions])
    assert asked[0] == asked[1]


def test_an_experiment_that_was_killed_while_it_began_begins_again(tmp_path):
    found = content(tmp_path)
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / ".experiment.json.manytune-tmp-0123abcd").write_text('{"form')
    open_workspace(experiment_from(found), Reported())
    (tmp_path / "experiment" / "experiment.json").write_text('{"form')
    with pytest.raises(
        RunError, match=r"experiment\.json: what the experiment began with can't be read.*Restore"
    ):
        open_workspace(experiment_from(found), Reported())
