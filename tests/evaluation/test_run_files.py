import json

from manytune.evaluation.results import Cost, Curves, LossPoint, ScorePoint
from manytune.evaluation.run_files import read_cost, read_curves

SCORES = {
    "directory": "runs/a",
    "adapter": "runs/a/adapter",
    "base": "tiny",
    "method": "lora",
    "validation_loss": 2.5,
    "steps": 2,
    "tokens": 10,
    "tokens_per_second": 3.5,
    "seconds": 1.5,
    "peak_memory": 9,
    "trainable_parameters": 7,
    "all_parameters": 70,
}
STEP = {
    "total_steps": 2,
    "epoch": 0.5,
    "learning_rate": 0.1,
    "grad_norm": 1.0,
    "tokens": 5,
    "step_seconds": 0.1,
    "seconds": 0.2,
}


def test_cost_comes_from_the_runs_scores_and_the_size_of_the_tensor_files(tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"x" * 300)
    (adapter / "manifest.json").write_bytes(b"y" * 50)
    (tmp_path / "scores.json").write_text(json.dumps(SCORES))
    assert read_cost(tmp_path, adapter) == Cost(7, 70, 1.5, 9, 300, 3.5)


def test_an_adapter_without_a_run_has_a_size_and_nothing_else(tmp_path):
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x" * 300)
    assert read_cost(None, tmp_path) == Cost(adapter_bytes=300)
    assert read_cost(tmp_path, tmp_path) == Cost(adapter_bytes=300)


def test_curves_tell_steps_from_validations(tmp_path):
    lines = [
        {"step": 0, "total_steps": 2, "validation_loss": 3.0, "seconds": 0.1},
        {"step": 1, "loss": 2.5, **STEP},
        {"step": 2, "loss": 2.0, **STEP},
        {"step": 2, "total_steps": 2, "validation_loss": 2.2, "seconds": 0.4, "scores": {"rouge1": 0.5}},
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_curves(tmp_path) == Curves(
        training=(LossPoint(1, 2.5), LossPoint(2, 2.0)),
        validation=(LossPoint(0, 3.0), LossPoint(2, 2.2)),
        scores={"rouge1": (ScorePoint(2, 0.5),)},
    )


def test_a_run_without_a_log_has_no_curves(tmp_path):
    assert read_curves(tmp_path) == Curves()
