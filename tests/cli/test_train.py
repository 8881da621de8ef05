"""`manytune train` and `manytune adapters` as a person meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from tests.store.tiny import save_tiny_base
from tests.training.tiny_run import recipe_content
from typer.testing import CliRunner, Result

from manytune.cli.main import build_app


def manytune(*arguments: str | Path) -> Result:
    return CliRunner().invoke(build_app(), [str(argument) for argument in arguments])


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_content(tmp_path, max_steps=3)))
    return tmp_path / "recipe.yaml"


@pytest.fixture
def adapter(recipe: Path) -> Path:
    assert manytune("train", recipe).exit_code == 0
    return recipe.parent / "run" / "adapter"


def test_train_prints_what_came_out_and_where_it_is(recipe: Path) -> None:
    result = manytune("train", recipe)
    assert result.exit_code == 0, result.stderr
    for expected in (
        "validation loss",
        "before training",
        "trained",
        "tokens/s",
        "GiB",
        "run/adapter",
        " computed",
        "by sharing",
    ):
        assert expected in result.stdout.replace("\n", "")
    assert "18 rows to train on, 6 to validate on" in result.stderr
    assert "step 3/3  loss " in result.stderr


def test_train_prints_json_and_nothing_else_on_stdout(recipe: Path) -> None:
    result = manytune("train", recipe, "--json", "--set", "training.max_steps=2", "--set", "method.r=3")
    found = json.loads(result.stdout)
    assert found["steps"] == 2
    assert found == json.loads((recipe.parent / "run" / "scores.json").read_text())


def test_train_prints_the_mfu_when_asked(recipe: Path) -> None:
    result = manytune("train", recipe, "--measure")
    assert "MFU" in result.stdout and "GFLOP/s that this machine" in result.stdout.replace("\n", " ")
    scores = json.loads((recipe.parent / "run" / "scores.json").read_text())
    assert scores["mfu"] > 0
    assert scores["batching"] == {"asked": "shared-prefix", "used": "shared-prefix", "reason": None}


def test_what_frozen_layers_keep_is_said_before_and_after(recipe: Path) -> None:
    asked = ("--set", "training.cache_frozen=true", "--set", "method.layers_to_transform=[1]")
    longer = ("--set", "training.max_steps=12")
    result = manytune("train", recipe, "--dry-run", *asked)
    assert "the lower 1 of 2 layers run once for each of " in result.stdout.replace("\n", " ")
    result = manytune("train", recipe, *asked, *longer)
    assert result.exit_code == 0, result.stderr
    assert "computed tokens skipped 1 of 2 layers" in result.stdout.replace("\n", " ")
    scores = json.loads((recipe.parent / "run" / "scores.json").read_text())
    assert scores["tokens_skipping_lower_layers"] > 0
    assert scores["cache_frozen"]["layers"] == 1


def test_frozen_layers_that_are_trained_are_an_error_with_a_name(recipe: Path) -> None:
    result = manytune("train", recipe, "--set", "training.cache_frozen=true")
    assert result.exit_code == 1
    assert "the first layer (base_model.model.model.layers.0) is trained" in " ".join(result.stderr.split())


def test_a_dry_run_estimates_and_writes_nothing(recipe: Path) -> None:
    result = manytune("train", recipe, "--dry-run")
    assert result.exit_code == 0, result.stderr
    for expected in (
        "parameters",
        "18, 18 in an epoch",
        "padding",
        "shared",
        "about ",
        "GiB",
        "Based on 3 batches",
    ):
        assert expected in result.stdout.replace("\n", " ")
    assert not (recipe.parent / "run").exists()
    found = json.loads(manytune("train", recipe, "--dry-run", "--json").stdout)
    assert (found["steps"], found["train_rows"]) == (3, 18)
    assert found["epoch"]["tokens_in"] > 0
    assert {"padding_share", "shared_share", "seconds", "peak_memory", "basis"} <= set(found)


def test_a_dry_run_refuses_options_of_a_real_one(recipe: Path) -> None:
    result = manytune("train", recipe, "--dry-run", "--resume")
    assert result.exit_code == 2
    assert "--dry-run" in result.stderr


def test_train_refuses_to_overwrite_and_does_so_when_asked(recipe: Path) -> None:
    assert manytune("train", recipe).exit_code == 0
    again = manytune("train", recipe)
    assert again.exit_code == 1
    assert "--overwrite" in again.stderr
    assert manytune("train", recipe, "--overwrite").exit_code == 0
    assert "nothing to resume" in manytune("train", recipe, "--resume").stderr


def test_a_mistake_in_the_recipe_is_a_message_without_a_traceback(recipe: Path) -> None:
    result = manytune("train", recipe, "--set", "training.lerning_rate=1")
    assert result.exit_code == 1
    assert "did you mean 'learning_rate'?" in result.stderr.replace("\n", " ")
    assert "Traceback" not in result.stderr
    assert manytune("train").exit_code == 2


def test_show_describes_the_adapter(adapter: Path) -> None:
    shown = manytune("adapters", "show", adapter).stdout
    for expected in (
        "lora, ",
        "r=2",
        "{{ text }}",
        "{{ answer }}",
        "plain",
        "validation_loss",
        "by manytune",
    ):
        assert expected in shown
    described = json.loads(manytune("adapters", "show", adapter, "--json").stdout)
    assert described["method"] == "lora"
    assert described["note"] is None
    assert described["bytes"] > 0


def test_show_reads_an_adapter_of_hf_peft(adapter: Path) -> None:
    (adapter / "manifest.json").unlink()
    shown = manytune("adapters", "show", adapter).stdout
    assert "LORA" in shown
    assert "no manifest.json" in shown
    assert json.loads(manytune("adapters", "show", adapter, "--json").stdout)["peft"]["r"] == 2


def test_verify_says_that_an_adapter_is_intact_and_fits(adapter: Path, tmp_path: Path) -> None:
    assert "2 files are intact" in manytune("adapters", "verify", adapter).stdout
    fitting = manytune("adapters", "verify", adapter, "--base", tmp_path / "base")
    assert "and the base fits" in fitting.stdout.replace("\n", "")
    found = json.loads(manytune("adapters", "verify", adapter, "--base", tmp_path / "base", "--json").stdout)
    assert [(one["path"], one["files"], one["base_checked"], one["note"]) for one in found] == [
        (str(adapter), 2, True, None)
    ]


def test_verify_fails_on_another_base_and_on_a_changed_file(adapter: Path, tmp_path: Path) -> None:
    other = manytune("adapters", "verify", adapter, "--base", save_tiny_base(tmp_path / "other", seed=1))
    assert other.exit_code == 1
    assert "the weights differ" in other.stderr.replace("\n", " ")
    config = adapter / "adapter_config.json"
    config.write_text(config.read_text().replace('"r": 2', '"r": 4'))
    changed = manytune("adapters", "verify", adapter)
    assert changed.exit_code == 1
    assert "changed or damaged" in changed.stderr.replace("\n", " ")


def test_verify_says_what_it_could_not_check(adapter: Path) -> None:
    (adapter / "manifest.json").unlink()
    result = manytune("adapters", "verify", adapter)
    assert result.exit_code == 0
    assert "neither its files nor its base could be checked" in result.stdout.replace("\n", " ")


def test_processes_that_a_launcher_started_start_no_others(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", "1")
    result = manytune("train", recipe, "--processes", "2")
    assert result.exit_code == 1
    assert "a launcher has started this one as one of 2 already" in " ".join(result.stderr.split())
    other = manytune("adapters", "list")
    assert other.exit_code == 1 and "`manytune adapters` is for one" in " ".join(other.stderr.split())


def test_a_dry_run_starts_no_processes(recipe: Path) -> None:
    result = manytune("train", recipe, "--dry-run", "--processes", "2")
    assert result.exit_code == 2 and "--processes" in result.stderr
