import dataclasses

import pytest
from tests.experiments.tiny_experiment import Reported, content, experiment

from manytune.errors import DataError, RecipeError
from manytune.evaluation.learning_curve import curve_sentence
from manytune.evaluation.records import read_record
from manytune.evaluation.results import read_evaluation, write_evaluation
from manytune.experiments.compare import compare
from manytune.experiments.opening import open_workspace
from manytune.experiments.outputs import write_outputs
from manytune.experiments.recipe import experiment_from
from manytune.experiments.runner import InTurn
from manytune.experiments.sweep import sweep, sweep_experiment
from manytune.training import inputs


def test_a_sweep_has_a_point_a_rank_with_loss_test_and_spectrum(tmp_path):
    wanted = sweep_experiment(experiment(tmp_path, seeds=[0, 1]), [4, 1], [])
    evaluation = sweep(open_workspace(wanted, Reported(), ranks=True), InTurn())
    found = evaluation.sweep
    assert [(point.system, point.rank) for point in found.points] == [("r=1", 1), ("r=4", 4)]
    assert [point.trainable_params for point in found.points] == [
        evaluation.result(name).cost.trainable_params for name in ("r=1", "r=4")
    ]
    assert all(len(point.seed_losses) == 2 for point in found.points)
    assert found.points[0].spectrum.effective_rank == pytest.approx(1.0)
    assert 1.0 < found.points[1].spectrum.effective_rank <= 4.0
    assert found.recommended in ("r=1", "r=4") and found.reason
    write_evaluation(evaluation, tmp_path / "results.json")
    assert read_evaluation(tmp_path / "results.json") == evaluation


def test_the_loss_over_groups_is_the_validation_loss_of_the_training(tmp_path):
    wanted = sweep_experiment(experiment(tmp_path), [2], [])
    sweep(open_workspace(wanted, Reported(), ranks=True), InTurn())
    record = read_record(wanted.directory / "records/r=2/lr-0.01-seed-0.json")
    assert record.validation_loss == pytest.approx(record.curves.validation[-1].loss, rel=1e-5)


def test_one_base_is_loaded_for_all_ranks_and_finished_ones_are_not_trained_again(tmp_path, monkeypatch):
    loads = []
    monkeypatch.setattr(
        inputs, "load_base", lambda *a, real=inputs.load_base, **k: loads.append(a) or real(*a, **k)
    )
    reported = Reported()
    small = sweep_experiment(experiment(tmp_path), [1, 2], [])
    sweep(open_workspace(small, reported, ranks=True), InTurn())
    assert len(reported.trained()) == 2 and len(loads) == 1
    reported = Reported()
    larger = sweep_experiment(experiment(tmp_path), [1, 2, 4], [])
    sweep(open_workspace(larger, reported, ranks=True), InTurn())
    assert reported.trained() == ["r=4/lr-0.01-seed-0"]


def test_alpha_and_learning_rate_stay_and_targets_make_more_systems(tmp_path):
    found = content(tmp_path)
    found["method"]["lora_alpha"] = 16
    wanted = sweep_experiment(experiment_from(found), [1, 8], ["all-linear", "q_proj,v_proj"])
    systems = wanted.systems()
    assert list(systems) == ["r=1 all-linear", "r=8 all-linear", "r=1 q_proj,v_proj", "r=8 q_proj,v_proj"]
    configs = [wanted.method_of(system).peft_config() for system in systems.values()]
    assert [config.lora_alpha for config in configs] == [16] * 4
    assert configs[3].r == 8 and set(configs[3].target_modules) == {"q_proj", "v_proj"}
    assert {wanted.rates_of(system) for system in systems.values()} == {(0.01,)}


def test_a_sweep_is_for_lora_and_each_rank_once(tmp_path):
    found = content(tmp_path)
    with pytest.raises(RecipeError, match="a rank is given twice in 4, 4"):
        sweep_experiment(experiment_from(found), [4, 4], [])
    found["method"] = {"name": "ia3"}
    with pytest.raises(RecipeError, match="a rank sweep is for lora, and the recipe's method is ia3"):
        sweep_experiment(experiment_from(found), [4], [])


def test_a_sweeps_records_answer_a_comparison_and_not_the_other_way_round(tmp_path):
    wanted = sweep_experiment(experiment(tmp_path), [1], [])
    trial = "r=1/lr-0.01-seed-0"
    reported = Reported()
    workspace = open_workspace(wanted, reported)
    compare(workspace, InTurn())
    assert workspace.record(trial) is not None
    sweeping = dataclasses.replace(workspace, ranks=True)
    assert sweeping.record(trial) is None  # it has no losses by group
    sweep(sweeping, InTurn())
    assert reported.trained() == [trial] and reported.lines.count(f"asking {trial}") == 2
    assert sweeping.record(trial).validation
    assert workspace.record(trial) == sweeping.record(trial)


def test_rows_and_ranks_are_a_grid_that_goes_on_after_a_kill_and_fewer_rows_take_fewer_steps(tmp_path):
    def opened(reported):
        wanted = sweep_experiment(experiment(tmp_path), [1, 2], [], [3, 12])
        return open_workspace(wanted, reported, ranks=True)

    reported = Reported()

    def stopping(report):
        reported.steps += 1
        if reported.steps == 5:
            raise KeyboardInterrupt

    reported.training = stopping
    with pytest.raises(KeyboardInterrupt):
        sweep(opened(reported), InTurn())
    begun = reported.trained()
    evaluation = sweep(opened(reported := Reported()), InTurn())
    assert begun[:-1] and not set(begun[:-1]) & set(reported.trained())
    found = evaluation.sweep
    assert [(point.rows, point.rank) for point in found.points] == [(n, r) for n in (3, 12) for r in (1, 2)]
    records = {
        name: read_record(tmp_path / f"experiment/records/r=1-on-{name}-rows/lr-0.01-seed-0.json")
        for name in (3, 12)
    }
    assert records[3].steps < records[12].steps
    assert records[3].recipe[""]["data"]["limit"] == 3
    assert [curve.label for curve in found.curves] == ["r=1", "r=2"]
    assert all(curve.rows == (3, 12) and curve.why_not for curve in found.curves)
    page, text, *_ = write_outputs(evaluation, experiment(tmp_path), title="t", command="{recipe}")
    assert "Rows and ranks" in page.read_text() and "training rows" in page.read_text()
    assert all(curve_sentence(curve) in text.read_text() for curve in found.curves)
    write_evaluation(evaluation, tmp_path / "results.json")
    assert read_evaluation(tmp_path / "results.json") == evaluation


def test_more_rows_than_there_are_and_a_number_twice_are_refused(tmp_path):
    with pytest.raises(RecipeError, match="a number of rows is given twice in 3, 3"):
        sweep_experiment(experiment(tmp_path), [1], [], [3, 3])
    wanted = sweep_experiment(experiment(tmp_path), [1], [], [999])
    with pytest.raises(DataError, match=r"data.limit asks for 999 training rows, and there are \d+"):
        sweep(open_workspace(wanted, Reported(), ranks=True), InTurn())
