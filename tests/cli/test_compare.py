"""`manytune compare` and `manytune sweep` from end to end on a tiny base."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from tests.experiments.forked import Forked
from tests.experiments.tiny_experiment import content
from typer.testing import CliRunner

from manytune.cli.main import build_app
from manytune.evaluation.records import read_record
from manytune.experiments import runner


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content(tmp_path), sort_keys=False))
    return path


def call(*arguments: str):
    return CliRunner().invoke(build_app(), list(arguments), catch_exceptions=False)


def test_compare_prints_the_table_and_what_was_forgotten_and_writes_four_files(recipe, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    done = call("compare", str(recipe))
    assert done.exit_code == 0
    for expected in ("chrF", "full", "LoRA", "Forgotten", "letters", "corrected for the 3 comparisons"):
        assert expected in done.stdout
    assert "training LoRA/lr-0.03-seed-0" in done.stderr
    shown, paths = done.stdout.split("Written:\n")
    assert max(map(len, shown.splitlines())) <= 80
    assert f"  {recipe.parent}/experiment/report.html" in paths.splitlines()  # whole, however long
    directory = recipe.parent / "experiment"
    for name in ("report.html", "report.md", "table.tex", "results.json", "recipe.yaml"):
        assert (directory / name).is_file()
    # The recipe that is left behind makes the same again: everything is there already.
    again = call("compare", str(directory / "recipe.yaml"), "--json")
    assert "training" not in again.stderr
    found = json.loads(again.stdout)
    assert [system["name"] for system in found["results"]] == ["base", "full", "LoRA"]
    assert found["forgetting"][0]["name"] == "letters" and found["shares"]


def records_of(directory, *options):
    """What a comparison in this directory leaves."""
    directory.mkdir()
    path = directory / "recipe.yaml"
    path.write_text(yaml.safe_dump(content(directory), sort_keys=False))
    done = call("compare", str(path), *options)
    assert done.exit_code == 0, done.output
    kept = directory / "experiment" / "records"
    return {str(file.relative_to(kept)): read_record(file) for file in sorted(kept.rglob("*.json"))}


def assert_same_records(found, expected):
    assert list(found) == list(expected)
    for name, one in expected.items():
        other = found[name]
        assert (one.answers, one.probes, one.curves, one.steps) == (
            other.answers,
            other.probes,
            other.curves,
            other.steps,
        ), name


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Those of one worker."""
    return records_of(tmp_path_factory.mktemp("alone") / "one")


def test_two_workers_give_the_same_records_as_one(records, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "subprocess", SimpleNamespace(Popen=Forked))
    assert_same_records(records_of(tmp_path / "two", "--workers", "2"), records)


def test_an_override_reaches_the_comparison(recipe):
    done = call("compare", str(recipe), "--set", "compare.limit=2", "--json")
    assert json.loads(done.stdout)["items"] == 2


def test_sweep_prints_the_rank_table_and_the_recommendation(recipe):
    done = call("sweep", str(recipe), "--ranks", "1,2")
    assert done.exit_code == 0
    assert "is enough." in done.stdout and "effective rank" in done.stdout
    found = json.loads(call("sweep", str(recipe), "--ranks", "1,2", "--json").stdout)
    assert [point["rank"] for point in found["sweep"]["points"]] == [1, 2]


@pytest.mark.parametrize("ranks", ["", "0", "4,x", "-1"])
def test_ranks_that_are_none_are_wrong_usage(recipe, ranks):
    done = call("sweep", str(recipe), "--ranks", ranks)
    assert done.exit_code == 2
    assert "expected whole numbers from 1" in " ".join(done.stderr.replace("│", " ").split())


def test_a_mistake_in_the_recipe_is_said_without_a_traceback(recipe):
    done = call("compare", str(recipe), "--set", "compare.seds=1")
    assert done.exit_code == 1
    assert "there is no such key; did you mean 'seeds'" in " ".join(done.stderr.split())
