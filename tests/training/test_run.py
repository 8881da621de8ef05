from __future__ import annotations

import json
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.methods.tiny_moe import QWEN3
from tests.training.tiny_run import adapter_digest, recipe_content, write_rows

from manytune.errors import DataError, RunError, StoreError
from manytune.model.peft_model import PeftModel
from manytune.store.adapters import open_adapter
from manytune.store.base import load_base
from manytune.store.locking import held
from manytune.store.run_directory import RunDirectory
from manytune.store.run_log import Report, StepReport
from manytune.training.precision import resolve_dtype
from manytune.training.recipe import Recipe, load_recipe, recipe_from
from manytune.training.run import TrainedRun, run


class StoppedError(Exception):
    pass


def recipe(tmp_path: Path, **training: Any) -> Recipe:
    return recipe_from(recipe_content(tmp_path, **training))


def stop_after(step: int) -> Any:
    def stop(report: Report) -> None:
        if isinstance(report, StepReport) and report.step == step:
            raise StoppedError

    return stop


def changed(original: Recipe, **sections: dict[str, Any]) -> Recipe:
    content = original.model_dump(mode="json")
    for section, values in sections.items():
        content[section].update(values)
    return recipe_from(content)


def entries(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, TrainedRun]:
    """A run of twelve steps that nothing interrupts, and its recipe."""
    wanted = recipe(tmp_path_factory.mktemp("whole"))
    return wanted, run(wanted)


def test_a_run_leaves_one_directory_with_everything_about_it(whole: tuple[Recipe, TrainedRun]) -> None:
    wanted, finished = whole
    directory = Path(wanted.output)
    assert sorted(entry.name for entry in directory.iterdir()) == [
        "adapter",
        "environment.json",
        "log.jsonl",
        "recipe.yaml",
        "scores.json",
    ]
    assert load_recipe(directory / "recipe.yaml") == resolve_dtype(wanted)
    environment = json.loads((directory / "environment.json").read_text())
    assert environment["threads"] == torch.get_num_threads()
    assert environment["packages"]["torch"] == metadata.version("torch")
    assert json.loads((directory / "scores.json").read_text()) == finished.scores.to_dict()
    assert (finished.train_rows, finished.validation_rows) == (18, 6)
    assert finished.resumed_from is None


def test_the_log_has_a_line_a_step_and_one_a_validation(whole: tuple[Recipe, TrainedRun]) -> None:
    wanted, training = whole[0], whole[1].training
    steps = [entry for entry in entries(Path(wanted.output)) if "loss" in entry]
    validations = [entry for entry in entries(Path(wanted.output)) if "validation_loss" in entry]
    assert [entry["step"] for entry in steps] == list(range(1, 13))
    assert [entry["loss"] for entry in steps] == [report.loss for report in training.step_reports]
    assert {"learning_rate", "tokens", "seconds", "grad_norm", "tokens_per_second"} <= set(steps[0])
    assert [entry["step"] for entry in validations] == [0, 6, 12]
    assert validations[-1]["validation_loss"] == training.validation_loss


def test_the_adapter_knows_its_base_template_and_recipe_and_can_be_loaded(
    whole: tuple[Recipe, TrainedRun],
) -> None:
    wanted, finished = whole
    base = load_base(wanted.base)
    manifest = open_adapter(finished.adapter, base=base).manifest
    assert manifest is not None
    assert manifest.base == wanted.base
    assert manifest.template == {"prompt": "{{ text }}", "completion": "{{ answer }}"}
    assert manifest.encoding == "plain"
    assert manifest.scores == {"validation_loss": finished.training.validation_loss}
    assert recipe_from(dict(manifest.recipe or {})) == resolve_dtype(wanted)

    ids = torch.tensor([[3, 4, 5]])
    before = base.model(input_ids=ids).logits
    loaded = PeftModel.from_pretrained(base.model, finished.adapter)
    assert not torch.allclose(loaded(input_ids=ids).logits, before)


def test_a_recipe_trains_the_experts_of_a_mixture(tmp_path: Path) -> None:
    content = recipe_content(tmp_path)
    experts = QWEN3.build()
    experts.save_pretrained(content["base"])  # type: ignore[operator]
    content["method"] = {
        "name": "lora",
        "r": 2,
        "target_parameters": ["experts.gate_up_proj", "experts.down_proj", "gate.weight"],
    }
    wanted = recipe_from(content)
    finished = run(wanted)
    losses = [
        entry["validation_loss"] for entry in entries(Path(wanted.output)) if "validation_loss" in entry
    ]
    assert losses[-1] < losses[0]
    base = load_base(wanted.base)
    with pytest.raises(AttributeError):
        base.model.get_submodule("model.layers.0.mlp.experts.base_layer")
    loaded = PeftModel.from_pretrained(base.model, finished.adapter)
    trained = {name: p for name, p in loaded.named_parameters() if "experts" in name and "lora_B" in name}
    assert len(trained) == 4 and all(parameter.abs().max() > 0 for parameter in trained.values())


def test_the_same_recipe_gives_the_same_bits_and_another_seed_gives_others(tmp_path: Path) -> None:
    hashes = []
    for place, seed in (("a", 0), ("b", 0), ("c", 1)):
        hashes.append(adapter_digest(run(recipe(tmp_path / place, seed=seed, max_steps=3)).adapter))
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_seed_does_not_decide_which_rows_are_validated_on(tmp_path: Path) -> None:
    losses = []
    for place, seed in (("a", 0), ("b", 1)):
        # Before training the adapter adds nothing, so that this is the base's loss on the validation rows.
        training = run(recipe(tmp_path / place, seed=seed, max_steps=1)).training
        losses.append(training.validation_reports[0].validation_loss)
    assert losses[0] == losses[1]


def test_a_resumed_run_is_the_uninterrupted_run(tmp_path: Path, whole: tuple[Recipe, TrainedRun]) -> None:
    parts = recipe(tmp_path / "parts")
    with pytest.raises(StoppedError):
        run(parts, report=stop_after(7))
    lines: list[str] = []
    finished = run(parts, resume=True, notify=lines.append)
    assert finished.resumed_from == 6
    assert "resuming after step 6" in lines
    assert adapter_digest(finished.adapter) == adapter_digest(whole[1].adapter)

    timeless = ("seconds", "step_seconds", "tokens_per_second")
    logs = [
        [{key: value for key, value in entry.items() if key not in timeless} for entry in entries(directory)]
        for directory in (whole[1].directory, finished.directory)
    ]
    assert logs[0] == logs[1]  # no step twice, none missing


def test_an_interruption_before_the_first_checkpoint_starts_at_the_beginning(tmp_path: Path) -> None:
    wanted = recipe(tmp_path)
    with pytest.raises(StoppedError):
        run(wanted, report=stop_after(1))
    lines: list[str] = []
    finished = run(wanted, resume=True, notify=lines.append)
    assert finished.resumed_from is None
    assert "no checkpoint was written before the interruption; starting at the first step" in lines
    assert [entry["step"] for entry in entries(finished.directory) if "loss" in entry] == list(range(1, 13))


def test_checkpoints_are_kept_when_asked(tmp_path: Path) -> None:
    finished = run(recipe(tmp_path), keep_checkpoints=True)
    assert (finished.directory / "checkpoints" / "step-00000012").is_dir()


def test_a_run_is_never_overwritten_unasked(tmp_path: Path) -> None:
    wanted = recipe(tmp_path, max_steps=2)
    first = adapter_digest(run(wanted).adapter)
    other = changed(wanted, training={"seed": 5})
    with pytest.raises(RunError, match=r"there is a run here already.*--resume.*--overwrite"):
        run(other)
    assert adapter_digest(run(other, overwrite=True).adapter) != first


def test_a_directory_that_holds_something_else_is_refused_even_with_overwrite(tmp_path: Path) -> None:
    wanted = recipe(tmp_path)
    Path(wanted.output).mkdir()
    (Path(wanted.output) / "thesis.tex").touch()
    for overwrite in (False, True):
        with pytest.raises(RunError, match="the directory isn't empty and holds no run"):
            run(wanted, overwrite=overwrite)
    assert (Path(wanted.output) / "thesis.tex").exists()


OWN_WORK = {
    "thesis.tex": "thesis.tex",
    ".git/HEAD": ".git/",
    "adapter/notes.txt": "adapter/notes.txt",
    "adapter/deeper/adapter_config.json": "adapter/deeper/adapter_config.json",
    "checkpoints/mine.safetensors": "checkpoints/mine.safetensors",
    "tensorboard/notes.txt": "tensorboard/notes.txt",
    "log.jsonl.bak": "log.jsonl.bak",
}


def test_overwriting_a_run_removes_nothing_that_no_run_wrote(tmp_path: Path) -> None:
    wanted = recipe(tmp_path, max_steps=2)
    before = adapter_digest(run(wanted).adapter)
    for name, named in OWN_WORK.items():
        mine = Path(wanted.output) / name
        mine.parent.mkdir(parents=True, exist_ok=True)
        mine.write_text("precious")
        with pytest.raises(RunError, match=rf"found {re.escape(named)}\. Nothing was removed"):
            run(changed(wanted, training={"seed": 5}), overwrite=True)
        assert mine.exists() and adapter_digest(Path(wanted.output) / "adapter") == before
        mine.unlink()
        if named != name or mine.parent.name == "deeper":
            mine.parent.rmdir()


def test_a_folder_with_a_recipe_of_its_own_is_no_run(tmp_path: Path) -> None:
    """`output: .` in the folder in which somebody works."""
    wanted = recipe(tmp_path)
    work = Path(wanted.output)
    (work / ".git").mkdir(parents=True)
    for name in ("recipe.yaml", "train.jsonl", ".git/HEAD", "environment.json"):
        (work / name).write_text("{}")
    for options in ({}, {"overwrite": True}):
        with pytest.raises(RunError, match="isn't empty and holds no run"):
            run(wanted, **options)
    assert sorted(path.name for path in work.rglob("*")) == [
        ".git",
        "HEAD",
        "environment.json",
        "recipe.yaml",
        "train.jsonl",
    ]


def test_what_a_link_in_a_run_leads_to_is_kept(tmp_path: Path) -> None:
    wanted = recipe(tmp_path, max_steps=2)
    run(wanted)
    for name in ("adapter", "checkpoints", "log.jsonl", "scores.json"):
        place, target, aside = Path(wanted.output) / name, tmp_path / "elsewhere" / name, tmp_path / "aside"
        if place.exists():
            place.rename(aside)
        target.mkdir(parents=True) if "." not in name else target.write_text("precious")
        place.symlink_to(target)
        with pytest.raises(RunError, match=rf"found {re.escape(name)}\. Nothing was removed"):
            run(wanted, overwrite=True)
        assert target.exists() and place.is_symlink()
        place.unlink()
        if aside.exists():
            aside.rename(place)


def test_a_mistake_in_the_new_recipe_costs_no_former_run(tmp_path: Path) -> None:
    wanted = recipe(tmp_path, max_steps=2)
    before = adapter_digest(run(wanted).adapter)
    with pytest.raises(DataError):
        run(changed(wanted, data={"train": str(tmp_path / "absent.jsonl")}), overwrite=True)
    assert adapter_digest(Path(wanted.output) / "adapter") == before
    assert RunDirectory(Path(wanted.output)).finished


def test_a_start_that_was_killed_before_its_recipe_was_written_blocks_no_other(tmp_path: Path) -> None:
    wanted = recipe(tmp_path, max_steps=2)
    run(wanted)
    for path in (file for file in Path(wanted.output).rglob("*") if file.is_file()):
        if path.name != "environment.json":
            path.unlink()
    assert run(wanted).training.steps


def test_a_run_that_failed_before_its_first_step_is_begun_anew_without_being_asked(tmp_path: Path) -> None:
    wanted = recipe(tmp_path, max_steps=2)
    nested = changed(wanted, training={"optimizer": "sgd", "optimizer_options": {"nesterov": True}})
    with pytest.raises(RunError, match="Nesterov momentum requires"):
        run(nested)
    assert (Path(wanted.output) / "recipe.yaml").is_file()
    assert run(wanted).training.steps == 2


def test_a_run_that_took_a_step_is_not_begun_anew_unasked(tmp_path: Path) -> None:
    wanted = recipe(tmp_path)
    with pytest.raises(StoppedError):
        run(wanted, report=stop_after(1))
    with pytest.raises(RunError, match="there is a run here already"):
        run(wanted)


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    wanted = recipe(tmp_path)
    Path(wanted.output).touch()
    with pytest.raises(RunError, match="the run directory's name is taken by a file"):
        run(wanted)


def test_what_cannot_be_resumed_is_an_error_that_says_why(tmp_path: Path) -> None:
    wanted = recipe(tmp_path, max_steps=2)
    with pytest.raises(RunError, match="there is no run to resume here"):
        run(wanted, resume=True)
    with pytest.raises(RunError, match="give one of them"):
        run(wanted, resume=True, overwrite=True)
    run(wanted)
    with pytest.raises(RunError, match="the run is complete, so there is nothing to resume"):
        run(wanted, resume=True)


def test_resuming_with_another_recipe_is_refused_and_the_keys_are_named(tmp_path: Path) -> None:
    wanted = recipe(tmp_path)
    with pytest.raises(StoppedError):
        run(wanted, report=stop_after(3))
    other = changed(wanted, training={"learning_rate": 0.02}, method={"r": 3})
    with pytest.raises(
        RunError, match=r"method\.r was 2 and is 3; training\.learning_rate was 0\.01 and is 0\.02"
    ):
        run(other, resume=True)


def test_resuming_with_other_rows_or_another_base_is_refused(tmp_path: Path) -> None:
    wanted = recipe(tmp_path)
    with pytest.raises(StoppedError):
        run(wanted, report=stop_after(3))
    write_rows(tmp_path / "rows.jsonl", 24, seed=9)
    with pytest.raises(RunError, match="the training rows changed since the run was interrupted"):
        run(wanted, resume=True)
    write_rows(tmp_path / "rows.jsonl", 24)
    base = load_base(wanted.base)
    with torch.no_grad():
        base.model.get_input_embeddings().weight.add_(1.0)
    base.model.save_pretrained(wanted.base)
    with pytest.raises(RunError, match="the base changed since the run was interrupted"):
        run(wanted, resume=True)


def test_resuming_with_another_number_of_threads_says_that_bits_may_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = recipe(tmp_path, max_steps=4)
    with pytest.raises(StoppedError):
        run(wanted, report=stop_after(3))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    lines: list[str] = []
    run(wanted, resume=True, notify=lines.append)
    assert any("warning: threads was 1 before the interruption and is 64 now" in line for line in lines)


def test_rows_that_were_left_out_are_counted_and_named(tmp_path: Path) -> None:
    wanted = changed(recipe(tmp_path), data={"on_error": "skip", "max_length": 40, "overflow": "drop"})
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        rows.read_text()
        + '{"text": "no answer"}\nnot json\n'
        + json.dumps({"text": "x" * 50, "answer": "y"})
        + "\n"
    )
    lines: list[str] = []
    finished = run(wanted, notify=lines.append)
    left_out = {
        row["row"] for row in json.loads((finished.directory / "scores.json").read_text())["left_out"]
    }
    assert left_out == {25, 26, 27}
    assert any(line.startswith(f"left out: {rows}:26: ") for line in lines)


def test_a_broken_row_stops_the_run_by_default_before_the_base_is_loaded(tmp_path: Path) -> None:
    wanted = changed(recipe(tmp_path), data={})
    rows = tmp_path / "rows.jsonl"
    rows.write_text(rows.read_text() + "not json\n")
    with pytest.raises(DataError, match=r"rows\.jsonl:25: "):
        run(wanted)


def test_prompts_in_both_splits_are_warned_of(tmp_path: Path) -> None:
    wanted = changed(recipe(tmp_path), data={"validation": str(tmp_path / "rows.jsonl")})
    lines: list[str] = []
    finished: TrainedRun = run(wanted, notify=lines.append)
    assert finished.leaks == 24
    assert "warning: 24 prompts occur in more than one split, so scores partly measure memory" in lines


def test_two_processes_never_train_in_the_same_directory(tmp_path: Path) -> None:
    wanted = recipe(tmp_path)
    with held(Path(wanted.output)), pytest.raises(StoreError, match="another process is writing here"):
        run(wanted)
