"""A regression from rows to a server: `init`, `data check`, `train`, `evaluate`, `compare`, and `/v1/classify`."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from starlette.testclient import TestClient
from tests.integration.test_classifiers import manytune
from tests.server.world import app_of
from tests.training.tiny_classifiers import classifier_content, regression_content, write_numbers

from manytune.data.labels.numeric_labels import NumericLabels
from manytune.engine.text_runner import TextJob
from manytune.errors import RecipeError
from manytune.store.adapters import open_adapter
from manytune.store.attaching import attached
from manytune.store.base import Base, load_base
from manytune.store.classifier_base import classifier_base
from manytune.store.store import AdapterStore
from manytune.training.recipe import recipe_from
from manytune.training.run import run


@pytest.fixture(scope="module", params=["bert", "llama"])
def recipe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe that has been trained."""
    directory = tmp_path_factory.mktemp(request.param)
    path = directory / "recipe.yaml"
    path.write_text(yaml.safe_dump(regression_content(directory, request.param, checkpoint_every=None)))
    manytune("train", path)
    return path


def alone(base: Base, adapter: Path, text: str) -> float:
    """The number by transformers' own model, standardized as the manifest says."""
    manifest = open_adapter(adapter).manifest
    assert manifest is not None and manifest.labels is not None
    scale = manifest.labels["scale"]
    with attached(classifier_base(base, ["value"]), adapter) as model, torch.no_grad():
        inputs = base.tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        return scale["mean"] + scale["deviation"] * float(model(**inputs).logits)


def test_a_run_is_evaluated_against_the_mean_label(recipe: Path) -> None:
    run, page = recipe.parent / "run", recipe.parent / "report.html"
    found = json.loads(manytune("evaluate", run, "--json", "--report", page).stdout)
    mean, mine = found["results"]
    assert (mean["name"], mine["name"]) == ("mean label", "run")
    assert [score["metric"] for score in mine["scores"]] == ["rmse", "mae", "pearson", "spearman"]
    stored = json.loads((run / "evaluation.json").read_text())
    right = [float(item["references"][0]) for item in stored["items"]]
    said = [float(answer["text"]) for answer in stored["results"][1]["answers"]]
    labels = NumericLabels.from_dict(json.loads((run / "adapter" / "manifest.json").read_text())["labels"])
    assert [float(answer["text"]) for answer in stored["results"][0]["answers"]] == pytest.approx(
        [labels.mean] * len(right)
    )
    rmse = math.sqrt(sum((one - other) ** 2 for one, other in zip(said, right, strict=True)) / len(right))
    assert mine["scores"][0]["value"] == pytest.approx(rmse) and rmse < mean["scores"][0]["value"]
    assert mine["scores"][2]["value"] > 0.5 and mean["scores"][2]["value"] == 0.0
    assert found["mcnemar"] == [] and "mean, " in page.read_text()
    base = load_base(yaml.safe_load(recipe.read_text())["base"])
    assert said[0] == pytest.approx(alone(base, run / "adapter", stored["items"][0]["prompt"]), abs=1e-4)


def test_data_check_shows_the_numbers_and_rejects_what_is_none(recipe: Path) -> None:
    printed = " ".join(manytune("data", "check", "--recipe", recipe).output.split())
    assert "labels: 10 to 20, mean" in printed
    rows = write_numbers(recipe.parent / "test.jsonl", 4, seed=8)
    rows.write_text(rows.read_text() + '{"text": "azaz", "score": "high"}\n')
    content = yaml.safe_load(recipe.read_text())
    content["data"]["test"] = str(rows)
    other = recipe.parent / "other.yaml"
    other.write_text(yaml.safe_dump(content))
    refused = " ".join(manytune("data", "check", "--recipe", other, fails=True).output.split())
    assert "test.jsonl:5 the label 'high' isn't a number" in refused
    refused = manytune("train", other, "--set", f"output={recipe.parent / 'none'}", fails=True).output
    assert "test.jsonl:5: the label 'high' isn't a number" in " ".join(refused.split())


def test_labels_that_are_not_standardized_are_learned_as_they_are(tmp_path: Path) -> None:
    content = regression_content(tmp_path, checkpoint_every=None, standardize=False, max_steps=1)
    finished = run(recipe_from(content))
    manifest = open_adapter(finished.adapter).manifest
    assert manifest is not None and manifest.labels is not None
    assert manifest.labels["scale"] == {"mean": 0.0, "deviation": 1.0} and manifest.labels["mean"] > 10
    assert (
        finished.training.validation_loss is not None and finished.training.validation_loss > 50
    )  # about 15²


def test_a_server_gives_each_text_the_number_of_its_own_adapter(recipe: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(recipe.read_text())
    base = load_base(content["base"])
    classes = classifier_content(tmp_path / "classes", max_steps=2, checkpoint_every=None)
    other = {**content, "output": str(tmp_path / "other")}
    other["training"] = {**content["training"], "seed": 1, "max_steps": 2}
    adapters = {
        "mine": recipe.parent / "run" / "adapter",
        "other": run(recipe_from(other)).adapter,
        "classes": run(recipe_from({**classes, "base": content["base"]})).adapter,
    }
    store = AdapterStore(tmp_path / "store")
    for name, path in adapters.items():
        store.add(path, name=name, base=base)
    with TestClient(app_of(base, store), base_url="http://localhost") as client:
        for name in ("mine", "other"):
            answer = client.post("/v1/classify", json={"model": name, "input": ["aaza", "zzzzzz"]}).json()
            assert [row["object"] for row in answer["data"]] == ["regression"] * 2
            expected = [alone(base, adapters[name], text) for text in ("aaza", "zzzzzz")]
            assert [row["value"] for row in answer["data"]] == pytest.approx(expected, abs=1e-4)
        service = client.app.state.service  # type: ignore[attr-defined]
        models = [service.adapters.acquire(name, classifies=True) for name in adapters]
        jobs = [
            TextJob(
                texts=service.labelling.tokens([("aaza",)], model), adapter=model.adapter, terms=model.terms
            )
            for model in models
        ]
        runner = service.labelling.runner
        for job in jobs:
            runner.add(job)
        runner.step()  # one batch for the three heads
        assert not runner.busy and [len(job.result.result()[0]) for job in jobs] == [1, 1, 2]
        for model in models:
            service.adapters.release(model)


def test_a_comparison_has_the_mean_label_full_fine_tuning_and_lora(tmp_path: Path) -> None:
    content = regression_content(tmp_path, checkpoint_every=None, epochs=1)
    content["compare"] = {
        "systems": {
            "full": {"method": {"name": "full"}, "learning_rates": 0.01},
            "lora": {"learning_rates": 0.02},
        }
    }
    path = tmp_path / "compare.yaml"
    path.write_text(yaml.safe_dump(content))
    found = json.loads(manytune("compare", path, "--json").stdout)
    assert [result["name"] for result in found["results"]] == ["mean label", "full", "lora"]
    assert found["primary"] == "rmse"
    # The trials have the scale of all training rows, so that their losses can be compared.
    trained = yaml.safe_load(next((tmp_path / "run").glob("**/lora/**/recipe.yaml")).read_text())
    assert trained["training"]["standardize"]["mean"] == pytest.approx(15, abs=1.5)


def test_a_sweep_over_rows_has_losses_on_one_scale(tmp_path: Path) -> None:
    content = regression_content(tmp_path, checkpoint_every=None, max_steps=2)
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(content))
    found = json.loads(manytune("sweep", path, "--ranks", "1", "--rows", "8,16", "--json").stdout)
    assert [result["name"] for result in found["results"]] == [
        "mean label",
        "r=1 on 8 rows",
        "r=1 on 16 rows",
    ]
    assert len(found["sweep"]["points"]) == 2
    trained = [
        yaml.safe_load(one.read_text()) for one in (tmp_path / "run").glob("**/r=1-on-*/**/recipe.yaml")
    ]
    assert (
        len(trained) == 2 and trained[0]["training"]["standardize"] == trained[1]["training"]["standardize"]
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": {"class_weights": "balanced"}}, "class_weights are for task: classification"),
        (
            {"task": "classification", "training": {"standardize": True}},
            "standardize is for task: regression",
        ),
        ({"data": {"train": "x"}}, "task: regression needs data.text"),
        ({"training": {"standardize": {"mean": 0, "deviation": 0}}}, "standardize"),
        ({"adapter": "x"}, "task: regression starts with a new head"),
    ],
)
def test_a_recipe_that_mixes_tasks_is_refused(changes: dict[str, Any], message: str) -> None:
    data = {"train": "x.jsonl", "text": "{{ t }}", "label": "l"}
    with pytest.raises(RecipeError, match=message):
        recipe_from({"task": "regression", "data": data, **changes})


def test_init_takes_a_column_with_fractions_for_numbers(tmp_path: Path) -> None:
    rows = [{"first": f"a text {n}", "id": n, "similarity": n / 7} for n in range(40)]
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    manytune("init", file, "--output", tmp_path / "pairs.yaml")
    found = yaml.safe_load((tmp_path / "pairs.yaml").read_text())
    assert (found["task"], found["data"]["text"], found["data"]["label"]) == (
        "regression",
        "{{ first }}",
        "similarity",
    )
