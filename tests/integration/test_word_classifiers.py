"""A classifier of words from rows to a server: `data check`, `train`, `evaluate`, `compare`, and `/v1/classify`."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from starlette.testclient import TestClient
from tests.integration.test_classifiers import manytune
from tests.server.world import app_of
from tests.training.tiny_classifiers import classifier_content, tagged_content, write_tagged

from manytune.engine.text_runner import TextJob
from manytune.errors import RecipeError
from manytune.store.adapters import open_adapter
from manytune.store.attaching import attached
from manytune.store.base import Base, load_base
from manytune.store.classifier_base import classifier_base
from manytune.store.store import AdapterStore
from manytune.training.batches import labelled
from manytune.training.inputs import read_inputs
from manytune.training.recipe import load_recipe, recipe_from
from manytune.training.run import run

NAMES = ["B-X", "B-Y", "I-X", "O"]


@pytest.fixture(scope="module", params=["bert", "llama"])
def recipe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe that has been trained."""
    directory = tmp_path_factory.mktemp(request.param)
    path = directory / "recipe.yaml"
    content = tagged_content(directory, request.param, checkpoint_every=None, class_weights="balanced")
    path.write_text(yaml.safe_dump(content))
    manytune("train", path)
    return path


def alone(base: Base, adapter: Path, words: list[str]) -> torch.Tensor:
    """The tags' probabilities for each word by transformers' own model; here a letter is a token."""
    with attached(classifier_base(base, NAMES, of_words=True), adapter) as model, torch.no_grad():
        inputs = base.tokenizer(" ".join(words), return_tensors="pt", return_token_type_ids=False)
        probabilities = model(**inputs).logits.softmax(-1)[0]
    first = [sum(len(word) + 1 for word in words[:place]) for place in range(len(words))]
    return probabilities[[place + base.is_encoder for place in first]]


def test_a_run_learns_its_rows_and_is_evaluated_by_spans(recipe: Path) -> None:
    run_directory, page = recipe.parent / "run", recipe.parent / "report.html"
    found = json.loads(manytune("evaluate", run_directory, "--json", "--report", page).stdout)
    majority, mine = found["results"]
    assert (majority["name"], mine["name"]) == ("majority class", "run")
    names = ["span_f1", "span_f1_macro", "span_precision", "span_recall", "tag_accuracy"]
    assert [score["metric"] for score in mine["scores"]] == names
    assert majority["scores"][0]["value"] == 0.0 and mine["scores"][0]["value"] > 0.7
    assert "most frequent tag, &#39;O&#39;" in page.read_text()
    manifest = open_adapter(run_directory / "adapter").manifest
    assert manifest is not None and manifest.labels is not None
    assert (manifest.labels["task"], manifest.labels["names"]) == ("token-classification", NAMES)


def test_the_loss_is_the_weighted_mean_over_first_tokens_alone(recipe: Path) -> None:
    content = yaml.safe_load(recipe.read_text())
    base = load_base(content["base"])
    rows = read_inputs(recipe_from(content), base=base).data.validation
    batch = labelled.build(rows, pad_id=0)
    assert batch.targets == sum(len(row.completion_ids) for row in rows)
    whole = classifier_base(base, NAMES, of_words=True)
    adapter = recipe.parent / "run" / "adapter"
    with attached(whole, adapter) as model, torch.no_grad():
        together = batch.loss_sum(batch.logits(model)).item()
        expected = 0.0
        for row in rows:
            log_probabilities = model(input_ids=torch.tensor([row.input_ids])).logits.log_softmax(-1)[0]
            for place, tag, weight in zip(row.first_tokens, row.completion_ids, row.weights, strict=True):  # type: ignore[attr-defined]
                expected -= weight * log_probabilities[place, tag].item()
    assert together == pytest.approx(expected, rel=1e-4)


def test_data_check_counts_the_tags_of_words_and_rejects_unknown_ones(recipe: Path) -> None:
    rows = write_tagged(recipe.parent / "test.jsonl", 4, seed=8)
    rows.write_text(rows.read_text() + '{"tokens": ["ab", "q"], "ner": ["O", "B-Z"]}\n')
    content = yaml.safe_load(recipe.read_text())
    content["data"]["test"] = str(rows)
    other = recipe.parent / "other.yaml"
    other.write_text(yaml.safe_dump(content))
    found = json.loads(manytune("data", "check", "--recipe", other, "--json", fails=True).stdout)
    train, test = found["files"]
    assert list(train["labels"]) == NAMES and train["labels"]["O"] >= 48
    assert [row["reason"] for row in test["rejected"]] == ["the label 'B-Z' is no training row's"]


def test_each_request_has_its_own_adapter_and_head_in_one_batch(recipe: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(recipe.read_text())
    base = load_base(content["base"])
    other = {**content, "output": str(tmp_path / "other")}
    other["training"] = {**content["training"], "seed": 1, "max_steps": 2}
    texts = classifier_content(tmp_path / "texts", max_steps=2, checkpoint_every=None)
    adapters = {
        "mine": recipe.parent / "run" / "adapter",
        "other": run(recipe_from(other)).adapter,
        "texts": run(recipe_from({**texts, "base": content["base"]})).adapter,
    }
    store = AdapterStore(tmp_path / "store")
    for name, path in adapters.items():
        store.add(path, name=name, base=base)
    words = ["abc", "q", "r", "bb", "w"]
    with TestClient(app_of(base, store), base_url="http://localhost") as client:
        for name in ("mine", "other"):
            answer = client.post("/v1/classify", json={"model": name, "input": ["ab", "abc q r bb w"]})
            assert answer.status_code == 200, answer.text
            row = answer.json()["data"][1]
            expected = alone(base, adapters[name], words)
            for word, probabilities in zip(row["words"], expected, strict=True):
                assert list(word["probabilities"]) == NAMES
                assert list(word["probabilities"].values()) == pytest.approx(probabilities.tolist(), abs=1e-5)
                assert word["label"] == NAMES[int(probabilities.argmax())]
            given = client.post("/v1/classify", json={"model": name, "words": words}).json()["data"][0]
            assert [word["probabilities"] for word in given["words"]] == [
                word["probabilities"] for word in row["words"]
            ]
        row = client.post("/v1/classify", json={"model": "mine", "input": "abc q r bb w"}).json()["data"][0]
        entities = [(one["label"], one["text"], one["start"], one["end"]) for one in row["entities"]]
        assert entities == [("X", "q r", 4, 7), ("Y", "w", 11, 12)]
        service = client.app.state.service  # type: ignore[attr-defined]
        models = [service.adapters.acquire(name, classifies=True) for name in adapters]
        jobs = [
            TextJob(
                texts=service.labelling.tokens([("ab", "q")[: 1 + one.classifies_words]], one),
                adapter=one.adapter,
                terms=one.terms,
            )
            for one in models
        ]
        runner = service.labelling.runner
        for job in jobs:
            runner.add(job)
        runner.step()  # one batch for the three heads
        assert not runner.busy and [len(job.result.result()[0]) for job in jobs] == [8, 8, 2]
        for model in models:
            service.adapters.release(model)
        for body, message in (
            ({"model": "texts", "words": ["a"]}, "texts classifies texts, not their words"),
            ({"model": "mine", "input": "a", "text_pair": "b"}, "leave text_pair out"),
            ({"model": "mine"}, "expected either input or words"),
            ({"model": "mine", "input": "  "}, "a text has no words"),
            ({"model": "mine", "words": ["a", " "]}, "a word is blank"),
        ):
            refused = client.post("/v1/classify", json=body)
            assert refused.status_code == 400 and message in refused.text


def test_a_comparison_has_the_majority_tag_full_fine_tuning_and_lora(tmp_path: Path) -> None:
    content = tagged_content(tmp_path, checkpoint_every=None, max_steps=4)
    content["compare"] = {
        "systems": {
            "full": {"method": {"name": "full"}, "learning_rates": 0.01},
            "lora": {"learning_rates": 0.02},
        }
    }
    path = tmp_path / "compare.yaml"
    path.write_text(yaml.safe_dump(content))
    found = json.loads(manytune("compare", path, "--json").stdout)
    assert [result["name"] for result in found["results"]] == ["majority class", "full", "lora"]
    assert found["primary"] == "span_f1"


def test_words_with_virtual_tokens_before_them_keep_their_places(tmp_path: Path) -> None:
    content = tagged_content(tmp_path, "llama", checkpoint_every=None, max_steps=2)
    content["data"] |= {"validation": None}
    content["method"] = {"name": "prompt-tuning", "num_virtual_tokens": 3}
    finished = run(recipe_from(content))
    base = load_base(content["base"])
    rows = read_inputs(recipe_from(content), base=base).data.train[:2]
    with attached(classifier_base(base, NAMES, of_words=True), finished.adapter) as model, torch.no_grad():
        together = labelled.build(rows, pad_id=0).logits(model)
        alone = model(input_ids=torch.tensor([rows[0].input_ids])).logits[0, 3:]
    torch.testing.assert_close(together[0, : len(alone)], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "generation"}, "data.tokens and data.tags are for task: token-classification"),
        ({"task": "classification"}, "task: classification needs data.text"),
        ({"data": {"train": "x", "tokens": "t"}}, "tokens and tags, fields' names, go together"),
        ({"data": {"train": "x", "text": "{{ t }}", "label": "l"}}, "needs data.tokens and data.tags"),
        (
            {"data": {"train": "x", "tokens": "t", "tags": "g", "label": "l"}},
            "either text and label, image and label, or tokens",
        ),
    ],
)
def test_a_recipe_that_mixes_tasks_is_refused(changes: dict[str, Any], message: str) -> None:
    content = {"task": "token-classification", "data": {"train": "x", "tokens": "t", "tags": "g"}}
    with pytest.raises(RecipeError, match=message):
        recipe_from({**content, **changes})


@pytest.mark.parametrize("numbers", [False, True])
def test_init_takes_lists_of_words_and_of_as_many_tags(numbers: bool, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in write_tagged(tmp_path / "rows.jsonl", 40).read_text().splitlines()]
    if numbers:
        rows = [{**row, "ner": [NAMES.index(tag) for tag in row["ner"]]} for row in rows]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    manytune("init", file, "--output", tmp_path / "words.yaml")
    text = (tmp_path / "words.yaml").read_text()
    found = load_recipe(tmp_path / "words.yaml")
    assert (found.task, found.data.tokens, found.data.tags) == ("token-classification", "tokens", "ner")
    assert ("tag_names" in text) is numbers
