"""Comparisons over a tiny base: what is trained, what is kept, and what is never done twice."""

import contextlib
import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from tests.experiments.tiny_experiment import Reported, content, experiment
from tests.training.tiny_run import write_rows
from tests.word_base import write_nothing_between_tokens

from manytune.errors import RecipeError, RunError
from manytune.evaluation.records import read_record
from manytune.evaluation.results import Evaluation, read_evaluation
from manytune.experiments import workspace as workspaces
from manytune.experiments.compare import compare
from manytune.experiments.opening import open_workspace
from manytune.experiments.outputs import write_outputs
from manytune.experiments.recipe import Experiment, experiment_from, load_experiment
from manytune.experiments.runner import InTurn


def run(wanted: Experiment) -> tuple[Evaluation, Reported]:
    reported = Reported()
    return compare(open_workspace(wanted, reported), InTurn()), reported


HERE = Path(".")


@pytest.fixture(scope="module")
def finished_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which the experiment has been run; its paths are relative to it."""
    directory = tmp_path_factory.mktemp("finished")
    with contextlib.chdir(directory):
        run(experiment(HERE))
    return directory


@pytest.fixture
def finished(finished_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to work in."""
    shutil.copytree(finished_once, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def test_a_comparison_has_the_base_and_every_system_with_scores_costs_shares_and_forgetting(tmp_path):
    wanted = experiment(tmp_path, seeds=[0, 1])
    evaluation, reported = run(wanted)
    assert [result.name for result in evaluation.results] == ["base", "full", "LoRA"]
    assert [(found.system, found.baseline) for found in evaluation.comparisons[:3]] == [
        ("full", "base"),
        ("LoRA", "base"),
        ("LoRA", "full"),
    ]
    full = evaluation.result("full")
    assert full.seeds == (0, 1) and len(full.score("chrf").seeds) == 2
    assert full.cost.trainable_params == full.cost.total_params
    assert all(
        getattr(full.cost, field)
        for field in ("seconds", "peak_memory_bytes", "adapter_bytes", "tokens_per_second")
    )
    assert full.curves.training and full.curves.validation
    assert {found.reference for found in evaluation.shares} == {"full"}
    (probe,) = evaluation.forgetting
    assert [result.name for result in probe.evaluation.results] == ["base", "full", "LoRA"]
    # Two rates are tried for full, one of which is the first seed's; LoRA's is given.
    assert sorted(reported.trained()) == sorted(
        [
            "full/lr-0.003-seed-0",
            "full/lr-0.03-seed-0",
            next(name for name in reported.trained() if name.startswith("full") and name.endswith("seed-1")),
            "LoRA/lr-0.03-seed-0",
            "LoRA/lr-0.03-seed-1",
        ]
    )
    assert "by validation loss among 0.003 (" in full.provenance["Learning rate"]


def test_the_learning_rate_is_the_one_with_the_lowest_validation_loss(tmp_path):
    wanted = experiment(tmp_path, systems={"LoRA": {"learning_rates": [1e-5, 0.03]}})
    evaluation, _ = run(wanted)
    losses = {
        rate: json.loads(
            (wanted.directory / "trials/LoRA" / f"lr-{rate:g}-seed-0" / "scores.json").read_text()
        )["validation_loss"]
        for rate in (1e-5, 0.03)
    }
    assert losses[0.03] < losses[1e-5]
    assert evaluation.result("LoRA").provenance["Learning rate"].startswith("0.03, by validation loss")
    assert "at the edge" in evaluation.result("LoRA").provenance["Learning rate"]
    # The loser's adapter is gone, what is known about it stays.
    assert not (wanted.directory / "trials/LoRA/lr-1e-05-seed-0/adapter").exists()
    assert (wanted.directory / "trials/LoRA/lr-0.03-seed-0/adapter").is_dir()
    # If it is wanted after all, it is trained again, and only it.
    _, reported = run(experiment(tmp_path, systems={"LoRA": {"learning_rates": [1e-5]}}))
    assert reported.trained() == ["LoRA/lr-1e-05-seed-0"]


def test_started_again_nothing_is_trained_or_asked_and_the_result_is_the_same(finished):
    first, reported = run(experiment(HERE))
    again, _ = run(experiment(HERE))
    assert again == first
    assert reported.trained() == [] and reported.steps == 0
    assert not any(line.startswith("asking") for line in reported.lines)


def test_a_killed_comparison_goes_on_where_it_was_and_finds_the_same(tmp_path, monkeypatch):
    whole, _ = run(experiment(tmp_path / "whole"))

    def killed(*_, **__):
        raise KeyboardInterrupt

    wanted = experiment(tmp_path / "killed")
    with monkeypatch.context() as patch:
        patch.setattr(workspaces, "write_record", killed)  # the base has answered, and nobody wrote it down
        with pytest.raises(KeyboardInterrupt):
            run(wanted)
    for after in (1, 5, 9, 4):  # in the middle of a training, whichever comes
        reported = Reported()
        stops = after

        def stopping(report, reported=reported, stops=stops):
            reported.steps += 1
            if reported.steps == stops:
                raise KeyboardInterrupt

        reported.training = stopping
        with pytest.raises(KeyboardInterrupt):
            compare(open_workspace(wanted, reported), InTurn())
    again, _ = run(wanted)
    for one, other in zip(whole.results, again.results, strict=True):
        assert one.answers == other.answers
        assert one.scores == other.scores
        assert one.curves == other.curves


def test_a_system_added_later_is_all_that_is_trained(finished):
    systems = content(HERE)["compare"]["systems"] | {
        "IA3": {"method": {"name": "ia3"}, "learning_rates": [0.03]}
    }
    evaluation, reported = run(experiment(HERE, systems=systems))
    assert reported.trained() == ["IA3/lr-0.03-seed-0"]
    assert [result.name for result in evaluation.results] == ["base", "full", "LoRA", "IA3"]


def test_other_questions_are_asked_without_training_again(finished):
    evaluation, reported = run(experiment(HERE, limit=3))
    assert reported.trained() == []
    assert len(evaluation.items) == 3


def test_changed_rows_are_refused(finished):
    wanted = experiment(HERE)
    write_rows(finished / "rows.jsonl", 24, seed=5)
    with pytest.raises(RunError, match="train and validation changed since this experiment began"):
        run(wanted)


def test_a_changed_method_under_the_same_name_is_refused(finished):
    systems = {"LoRA": {"method": {"name": "lora", "r": 4}, "learning_rates": [0.03]}}
    changed = experiment(HERE, systems=systems, limit=2)  # the records answer other questions
    with pytest.raises(
        RunError, match=r"LoRA/lr-0.03-seed-0: this trial was made with another recipe \(method"
    ):
        run(changed)


def test_a_directory_with_something_else_in_it_is_refused(tmp_path):
    wanted = experiment(tmp_path)
    wanted.directory.mkdir()
    (wanted.directory / "thesis.txt").write_text("precious")
    with pytest.raises(RunError, match="isn't empty and holds no experiment"):
        run(wanted)


def test_a_rate_that_diverges_loses_and_is_not_tried_again(tmp_path):
    wanted = experiment(
        tmp_path, systems={"full": {"method": {"name": "full"}, "learning_rates": [0.01, 1e30]}}
    )
    evaluation, reported = run(wanted)
    assert "1e+30 (diverged)" in evaluation.result("full").provenance["Learning rate"]
    _, reported = run(dataclasses.replace(wanted))
    assert reported.trained() == []
    hopeless = experiment(
        tmp_path, systems={"full": {"method": {"name": "full"}, "learning_rates": [1e30, 1e31]}}
    )
    with pytest.raises(RunError, match="full: the training diverged at every learning rate"):
        run(hopeless)


def test_with_a_budget_in_seconds_steps_follow_from_a_timed_training(tmp_path):
    wanted = experiment(tmp_path, seconds=0.001, systems={"LoRA": {"learning_rates": [0.03]}})
    evaluation, reported = run(wanted)
    assert reported.trained()[0] == "LoRA/lr-0.03-seed-0-timing"
    record = read_record(wanted.directory / "records/LoRA/lr-0.03-seed-0.json")
    assert record.steps == 1  # not the recipe's 6
    again, reported = run(wanted)
    assert reported.trained() == [] and again.results == evaluation.results


def test_a_shorter_search_is_not_the_final_training(tmp_path):
    systems = {"LoRA": {"learning_rates": [0.003, 0.03]}}
    _, reported = run(experiment(tmp_path, search_steps=2, systems=systems))
    assert len(reported.trained()) == 3
    assert reported.trained()[0] == "LoRA/lr-0.003-seed-0-search"


def test_the_outputs_are_a_page_markdown_a_table_and_json(finished):
    wanted = experiment(HERE)
    evaluation, _ = run(wanted)
    page, text, table, record = write_outputs(
        evaluation, wanted, title="Worth it?", command="manytune compare {recipe}"
    )
    assert "<h1>Worth it?</h1>" in page.read_text()
    assert text.read_text().startswith("# Worth it?\n") and "## What was forgotten" in text.read_text()
    assert r"\begin{tabular}{lrrr}" in table.read_text() and "LoRA &" in table.read_text()
    kept = read_evaluation(record)
    assert kept.provenance["Command"] == f"manytune compare {wanted.directory}/recipe.yaml"
    assert kept.provenance["Recipe"] == (wanted.directory / "recipe.yaml").read_text()
    assert kept.results == evaluation.results and kept.forgetting == evaluation.forgetting
    assert load_experiment(wanted.directory / "recipe.yaml").compare == wanted.compare


def tasks_content(directory: Path) -> dict:
    """Two tasks of the same letters."""
    found = content(directory)
    files = [str(write_rows(directory / f"{name}.jsonl", 16, seed=seed)) for seed, name in enumerate("ab")]
    found["data"] = {
        "train": [
            {"name": name, "file": file, "prompt": f"{name} {{{{ text }}}}", "completion": "{{ answer }}"}
            for name, file in zip("ab", files, strict=True)
        ],
        "validation": 0.2,
        "test": 0.2,
    }
    found["compare"]["systems"] = {
        "one for all": {"learning_rates": [0.03]},
        "one each": {"learning_rates": [0.03], "per_task": True},
        "rehearsing": {"learning_rates": [0.03], "rehearse": 0.25},
    }
    found["forgetting"]["rehearsal"] = {
        "file": files[0],
        "prompt": "{{ answer }}",
        "completion": "{{ text }}",
    }
    return found


def test_one_adapter_for_all_tasks_one_for_each_and_rehearsal_are_compared(tmp_path):
    wanted = experiment_from(tasks_content(tmp_path))
    evaluation, _ = run(wanted)
    assert set(evaluation.result("one each").task_scores) == {"a", "b"}
    trials = wanted.directory / "trials"
    each = trials / "one-each/lr-0.03-seed-0"
    assert (each / "a/adapter").is_dir() and (each / "b/adapter").is_dir()
    steps = [json.loads((each / name / "scores.json").read_text())["steps"] for name in "ab"]
    alone = json.loads((trials / "one-for-all/lr-0.03-seed-0/scores.json").read_text())
    assert sum(steps) == alone["steps"]  # the same budget in all
    one, every = (evaluation.result(name).cost for name in ("one for all", "one each"))
    assert every.trainable_params == 2 * one.trainable_params
    rehearsed = json.loads((trials / "rehearsing/lr-0.03-seed-0/scores.json").read_text())
    assert {task["name"]: task["rate"] for task in rehearsed["tasks"]}["rehearsal"] == pytest.approx(0.25)
    assert rehearsed["steps"] == alone["steps"]
    assert rehearsed["validation_rows"] == alone["validation_rows"]  # nothing rehearsed is validated on
    # An item of a task is answered by that task's adapter alone; a probe has no task, so it asks no set of adapters.
    (probe,) = evaluation.forgetting
    assert "one each" not in [result.name for result in probe.evaluation.results]


def test_each_system_is_also_asked_with_its_answers_held_to_a_schema_and_both_are_scored(tmp_path):
    schema = tmp_path / "word.json"
    schema.write_text(json.dumps({"enum": [True, None]}))
    shorter = {"systems": {"base-1": {}, "LoRA": {"learning_rates": [0.03]}}, "metrics": ["json_valid"]}
    wanted = experiment(tmp_path, json_schema=str(schema), constrained=True, **shorter)
    write_nothing_between_tokens(tmp_path / "base")
    evaluation, _ = run(wanted)
    names = ["base", "base-1", "LoRA"]
    assert [one.name for one in evaluation.results] == [
        name for one in names for name in (one, f"{one}, constrained")
    ]
    for name in names:
        held = evaluation.result(f"{name}, constrained")
        assert held.score("json_schema").value == 1.0
        assert {answer.text for answer in held.answers} <= {"true", "null"}
        assert evaluation.result(name).score("json_schema").value == 0.0
    again = run(wanted)[1].lines
    assert not any(line.startswith(("asking", "training")) for line in again)


@pytest.mark.parametrize("compare", [{"constrained": True}, {"metrics": ["json_schema"]}])
def test_what_needs_a_schema_says_so_without_one(tmp_path, compare):
    with pytest.raises(RecipeError, match=r"needs a schema: give its file as compare\.json_schema"):
        experiment(tmp_path, **compare)
