"""`manytune plan` as a person meets it."""

import json
from pathlib import Path

import pytest
import yaml
from tests.planner.configs import llama
from typer.testing import CliRunner, Result

from manytune.cli.main import build_app


def manytune(*arguments: str | Path, width: int = 80) -> Result:
    return CliRunner().invoke(build_app(), ["plan", *map(str, arguments)], env={"COLUMNS": str(width)})


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(llama()))
    return tmp_path / "config.json"


@pytest.mark.parametrize("width", [60, 80])
def test_a_model_is_planned_in_few_columns(config: Path, width: int) -> None:
    result = manytune(config, "--price", "2", "--set", "serving.adapters=100", width=width)
    assert result.exit_code == 0, result.output
    for expected in (
        "Training: peak",
        "optimizer, adamw",
        "Fits into 80 GiB",
        "replicas",
        "an hour",
        "100 of",
    ):
        assert expected in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= width


def test_a_plans_file_is_planned_as_json(tmp_path: Path, config: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(yaml.safe_dump({"model": str(config), "hardware": "l4", "training": {"rows": 5}}))
    result = manytune(plan, "--hardware", "t4", "--json")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert content["hardware"]["memory_gib"] == 16 and content["serving"] is None
    assert content["training"]["steps"] == 2


def test_what_does_not_fit_is_said_with_what_would_help(config: Path) -> None:
    result = manytune(config, "--set", "training.batch_size=4000000")
    assert "Doesn't fit" in result.stdout and "gradient_checkpointing" in result.stdout
    result = manytune(config, "--set", "hardware={memory_gib: 0.1, bandwidth_gb_s: 1, tflops: {bfloat16: 1}}")
    assert "Not even a batch of one row fits" in result.stdout and "Serving doesn't fit" in result.stdout


def test_the_devices_are_listed_with_their_sources() -> None:
    result = manytune("--list-hardware")
    assert result.exit_code == 0 and "h100-sxm" in result.stdout and "data sheet" in result.stdout
    assert json.loads(manytune("--list-hardware", "--json").stdout)["t4"]["memory_gib"] == 16


def test_mistakes_are_sentences_and_statuses(config: Path) -> None:
    assert manytune().exit_code == 2
    result = manytune(config, "--hardware", "h1000")
    assert result.exit_code == 1 and "did you mean" in result.stderr
    result = manytune("nowhere/at-all")
    assert result.exit_code == 1 and "Planning asks no network" in result.stderr
