"""`/v1/classify` gives each text the probabilities of its own classifier, on encoders and on models that write."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient
from tests.server.world import app_of
from tests.store.adapters_made import make_adapter
from tests.training.tiny_classifiers import classifier_content, write_labelled

from manytune.engine.classifier import Classifier
from manytune.engine.text_runner import TextJob, TextTokens
from manytune.store.adapters import open_adapter
from manytune.store.attaching import attached
from manytune.store.base import Base, load_base
from manytune.store.classifier_base import classifier_base
from manytune.store.store import AdapterStore
from manytune.training.recipe import recipe_from
from manytune.training.run import run

TEXTS = ["aaba", "zz", "azazazbcd"]
THREE = ("red", "green", "blue")


@dataclass
class World:
    base: Base
    adapters: dict[str, Path]
    client: TestClient

    def alone(self, name: str, texts: list[str]) -> list[dict[str, float]]:
        """One text at a time, with the adapter attached."""
        adapter = self.adapters[name]
        manifest = open_adapter(adapter).manifest
        assert manifest is not None and manifest.labels is not None
        names = manifest.labels["names"]
        whole = classifier_base(self.base, names)
        with attached(whole, adapter) as model, torch.no_grad():
            found = [
                model(**self.base.tokenizer(t, return_tensors="pt", return_token_type_ids=False))
                for t in texts
            ]
        return [dict(zip(names, one.logits.softmax(-1)[0].tolist(), strict=True)) for one in found]


@pytest.fixture(scope="module", params=["bert", "llama"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp(request.param)
    content = classifier_content(directory, request.param, checkpoint_every=None, epochs=1)
    base = load_base(content["base"])
    content["data"] |= {"validation": None, "test": None}
    three = str(write_labelled(directory / "three.jsonl", 24, names=THREE))
    adapters = {}
    for name, changes in {
        "two": {},
        "three": {
            "data": {**content["data"], "train": three, "overflow": "truncate_prompt", "max_length": 8}
        },
        "ia3": {"method": {"name": "ia3", "target_modules": "all-linear", "feedforward_modules": []}},
    }.items():
        adapters[name] = run(recipe_from({**content, **changes, "output": str(directory / name)})).adapter
    store = AdapterStore(directory / "store")
    for name, path in adapters.items():
        store.add(path, name=name, base=base)
    if request.param == "llama":
        store.add(make_adapter(directory / "writes", base, seed=0), name="writes")
    with TestClient(app_of(base, store), base_url="http://localhost") as client:
        yield World(base, adapters, client)


def ask(world: World, **body: Any) -> Any:
    return world.client.post("/v1/classify", json=body)


@pytest.mark.parametrize("name", ["two", "three", "ia3"])
def test_probabilities_are_those_of_the_adapter_alone_text_by_text(world: World, name: str) -> None:
    answer = ask(world, model=name, input=TEXTS)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    # It was trained on texts of eight tokens at most, of which an encoder's special tokens are two.
    longest = 99 if name != "three" else 6 if world.base.is_encoder else 8
    alone = world.alone(name, [text[:longest] for text in TEXTS])
    for row, expected in zip(found["data"], alone, strict=True):
        assert row["probabilities"] == pytest.approx(expected, abs=1e-5)
        assert row["label"] == max(expected, key=lambda label: expected[label])
    assert [row["index"] for row in found["data"]] == [0, 1, 2]
    assert found["usage"]["prompt_tokens"] == found["usage"]["total_tokens"] > 0


def test_requests_at_the_same_time_have_their_own_heads(world: World) -> None:
    names = ["two", "ia3", "two", "three"]
    with ThreadPoolExecutor(4) as threads:
        answers = list(
            threads.map(lambda name: ask(world, model=name, input=TEXTS[:2]).json()["data"], names)
        )
    for name, rows in zip(names, answers, strict=True):
        for row, expected in zip(rows, world.alone(name, TEXTS[:2]), strict=True):
            assert row["probabilities"] == pytest.approx(expected, abs=1e-5)


def test_requests_that_wait_are_answered_in_one_forward_and_a_bad_one_alone_has_an_error(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[int] = []
    plain = Classifier.run
    monkeypatch.setattr(Classifier, "run", lambda self, rows: (runs.append(len(rows)), plain(self, rows))[1])
    service = world.client.app.state.service  # type: ignore[attr-defined]
    models = [service.adapters.acquire(name, classifies=True) for name in ("two", "ia3", "two")]
    texts = [TextTokens((5, 6)), TextTokens((7,)), TextTokens((999,))]
    jobs = [
        TextJob(texts=[text], adapter=model.adapter, terms=model.terms)
        for model, text in zip(models, texts, strict=True)
    ]
    runner = service.labelling.runner
    for job in jobs:
        runner.add(job)
    while runner.busy:
        runner.step()
    assert runs == [2]
    assert [job.result.exception() is None for job in jobs] == [True, True, False]
    for model in models:
        service.adapters.release(model)


def test_models_list_their_labels(world: World) -> None:
    listed = {model["id"]: model for model in world.client.get("/v1/models").json()["data"]}
    assert listed["two"]["labels"] == ["other", "vowel"]
    assert listed["three"]["labels"] == ["blue", "green", "red"]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"model": "two", "input": []}, 400, "expected 1 to 2,048 texts, found 0"),
        ({"model": "two", "input": ["a"] * 2049}, 400, "expected 1 to 2,048 texts, found 2,049"),
        ({"model": "two", "input": "a" * 90}, 400, "at most 6"),
        ({"model": "two", "input": "a", "text_pair": "b"}, 400, "takes one text, without text_pair"),
        (
            {"model": "two", "input": "a", "text_pair": ["b", "c"]},
            400,
            "expected 1 texts, one for each of input",
        ),
        ({"model": "base", "input": "a"}, 400, "is the base, which has no head"),
        ({"model": "nobody", "input": "a"}, 404, "there is no model 'nobody'"),
        ({"model": "two", "input": 3}, 400, "input"),
        ({"model": "two", "input": "a", "top_k": 1}, 400, "top_k"),
    ],
)
def test_what_cannot_be_classified_is_refused(
    world: World, body: dict[str, Any], status: int, message: str
) -> None:
    answer = ask(world, **body)
    assert (answer.status_code, message in answer.json()["error"]["message"]) == (status, True), answer.text


def test_a_classifier_writes_no_text_and_other_adapters_give_no_labels(world: World) -> None:
    route = "/v1/embeddings" if world.base.is_encoder else "/v1/completions"
    body = {"input": "a"} if world.base.is_encoder else {"prompt": "a"}
    refused = world.client.post(route, json={"model": "two", **body})
    assert refused.status_code == 400 and "send them to /v1/classify" in refused.json()["error"]["message"]
    if not world.base.is_encoder:
        other = ask(world, model="writes", input="a")
        assert other.status_code == 400 and "no classifier" in other.json()["error"]["message"]


def test_an_adapter_of_another_base_s_kind_is_not_listed(world: World) -> None:
    manifest = json.loads((world.adapters["two"] / "manifest.json").read_text())
    assert "unservable" not in manifest
