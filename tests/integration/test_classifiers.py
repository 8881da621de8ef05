"""A classifier from rows to a report: `data check`, `data preview`, `train`, `evaluate` and `compare` on one recipe."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.training.tiny_classifiers import classifier_content, write_labelled
from typer.testing import CliRunner

from manytune.cli.main import build_app


def manytune(*arguments: object, fails: bool = False) -> Any:
    result = CliRunner().invoke(build_app(), list(map(str, arguments)), catch_exceptions=False)
    assert bool(result.exit_code) is fails, result.output
    return result


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe that has been trained."""
    directory = tmp_path_factory.mktemp("classifier")
    content = classifier_content(directory, checkpoint_every=None)
    path = directory / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    manytune("train", path)
    return path


def test_a_run_is_evaluated_against_the_majority_class(recipe: Path) -> None:
    run = recipe.parent / "run"
    page = recipe.parent / "report.html"
    found = json.loads(manytune("evaluate", run, "--json", "--report", page).stdout)
    majority, mine = found["results"]
    assert (majority["name"], mine["name"]) == ("majority class", "run")
    assert [score["metric"] for score in mine["scores"]] == ["accuracy", "f1", "ece"]
    assert majority["scores"][0]["value"] == 0.5 and mine["scores"][0]["value"] > 0.8
    [test] = found["mcnemar"]
    assert test["only_system"] > test["only_baseline"]
    assert [sum(row) for row in found["confusion"][1]["counts"]] == [6, 6]
    assert "most frequent label, &#39;other&#39; (50.0% of them)" in page.read_text()
    assert json.loads((run / "adapter" / "manifest.json").read_text())["scores"]["accuracy"] > 0.8


def test_a_dry_run_counts_the_padding_of_batches_of_similar_lengths(recipe: Path) -> None:
    found = json.loads(manytune("train", recipe, "--dry-run", "--json", "--set", "training.epochs=1").stdout)
    assert (found["train_rows"], found["steps"], found["layout"]["used"]) == (24, 6, "padded")
    assert 0 <= found["padding_share"] < 0.2


def test_other_rows_are_evaluated_with_the_run_s_labels(recipe: Path) -> None:
    run, rows = recipe.parent / "run", write_labelled(recipe.parent / "new.jsonl", 6, seed=5)
    printed = manytune("evaluate", run, "--data", rows).stdout
    assert "McNemar's exact test" in printed and "majority class" in printed
    rows.write_text(rows.read_text() + '{"text": "abc", "label": "unheard"}\n')
    refused = manytune("evaluate", run, "--data", rows, fails=True).output
    assert "new.jsonl:7" in refused and "unheard" in refused


def test_a_comparison_has_full_fine_tuning_lora_and_the_majority_class(recipe: Path) -> None:
    content = yaml.safe_load(recipe.read_text())
    content["output"] = str(recipe.parent / "comparison")
    content["training"]["epochs"] = 1
    content["compare"] = {
        "systems": {
            "full": {"method": {"name": "full"}, "learning_rates": 0.01},
            "lora": {"learning_rates": 0.02},
        }
    }
    path = recipe.parent / "compare.yaml"
    path.write_text(yaml.safe_dump(content))
    found = json.loads(manytune("compare", path, "--json").stdout)
    assert [result["name"] for result in found["results"]] == ["majority class", "full", "lora"]
    pairs = {(test["system"], test["baseline"]) for test in found["mcnemar"]}
    assert ("lora", "full") in pairs and ("lora", "majority class") in pairs
    assert found["primary"] == "accuracy" and found["forgetting"] == []


def test_a_sweep_finds_the_rank_by_validation_loss_and_scores_every_one(recipe: Path) -> None:
    content = yaml.safe_load(recipe.read_text())
    content["output"] = str(recipe.parent / "sweep")
    content["training"]["epochs"] = 1
    path = recipe.parent / "sweep.yaml"
    path.write_text(yaml.safe_dump(content))
    found = json.loads(manytune("sweep", path, "--ranks", "1,2", "--json").stdout)
    assert [result["name"] for result in found["results"]] == ["majority class", "r=1", "r=2"]
    assert [score["metric"] for score in found["results"][1]["scores"]] == ["accuracy", "f1", "ece"]
    points = {point["system"]: point for point in found["sweep"]["points"]}
    assert found["sweep"]["best"] == min(points, key=lambda name: points[name]["validation_loss"])
    assert found["sweep"]["rows"] == 12 and points["r=2"]["spectrum"]["effective_rank"] <= 2
    scores = json.loads(next((recipe.parent / "sweep").glob("**/r=1/**/scores.json")).read_text())
    assert points["r=1"]["validation_loss"] == pytest.approx(scores["validation_loss"], abs=1e-5)


def test_data_check_counts_labels_and_refuses_those_that_no_training_row_has(recipe: Path) -> None:
    found = json.loads(manytune("data", "check", "--recipe", recipe, "--json").stdout)
    assert found["passed"] and found["files"][0]["labels"] == {"other": 24, "vowel": 24}
    assert "text, tokens" in found["files"][0]["lengths"]
    content = yaml.safe_load(recipe.read_text())
    rows = write_labelled(recipe.parent / "test.jsonl", 4, seed=8)
    rows.write_text(rows.read_text() + '{"text": "abcabc", "label": "Other"}\n')
    content["data"]["test"] = str(rows)
    other = recipe.parent / "other.yaml"
    other.write_text(yaml.safe_dump(content))
    refused = " ".join(manytune("data", "check", "--recipe", other, fails=True).output.split())
    assert (
        "the label 'Other' is no training row's" in refused
        and "labels: other 24 (50%), vowel 24 (50%)" in refused
    )


def test_data_preview_shows_the_text_s_tokens_and_the_label_that_is_learned(recipe: Path) -> None:
    [shown] = json.loads(manytune("data", "preview", "--recipe", recipe, "--rows", 1, "--json").stdout)[
        "shown"
    ]
    text, label = shown["parts"]
    assert text["text"].startswith("[CLS]") and not text["learned"]
    assert (label["text"], label["learned"]) == ("vowel", True)


def test_init_takes_a_column_of_few_short_values_for_labels(tmp_path: Path) -> None:
    rows = [{"review": f"a film number {n}", "stars": "12345"[n % 5], "id": f"x{n}"} for n in range(60)]
    file = tmp_path / "reviews.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    written = tmp_path / "reviews.yaml"
    manytune("init", file, "--output", written)
    found = yaml.safe_load(written.read_text())
    assert (found["task"], found["data"]["text"], found["data"]["label"]) == (
        "classification",
        "{{ review }}",
        "stars",
    )
