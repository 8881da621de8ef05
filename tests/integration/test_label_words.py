"""Models without a head classify by label words: `manytune evaluate --label-words`, and `/v1/classify`."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from starlette.testclient import TestClient
from tests.integration.test_classifiers import manytune
from tests.server.world import app_of, fill_store, save_base
from tests.training.tiny_classifiers import classifier_content

from manytune.data.encoding.encode import Encoder
from manytune.data.templates import Segment
from manytune.store.attaching import attached
from manytune.store.base import Base

WORDS = {"positive": "good", "negative": "bad"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that generates labels."""
    directory = tmp_path_factory.mktemp("words")
    content = classifier_content(directory, "llama", checkpoint_every=None, max_steps=1)
    data = {key: content["data"][key] for key in ("train", "validation", "test")}
    content["data"] = {**data, "prompt": "{{ text }} ", "completion": "{{ label }}"}
    path = directory / "recipe.yaml"
    path.write_text(yaml.safe_dump({**content, "task": "generation"}))
    manytune("train", path)
    return directory / "run"


def test_the_base_and_an_adapter_choose_among_labels(run: Path) -> None:
    found = json.loads(manytune("evaluate", run, "--label-words", "vowel,other", "--json").stdout)
    assert [result["name"] for result in found["results"]] == ["base", "run"]
    assert [score["metric"] for score in found["results"][1]["scores"]] == ["accuracy", "f1", "ece"]
    assert found["primary"] == "accuracy" and len(found["mcnemar"]) == 1
    stored = json.loads((run / "evaluation.json").read_text())
    assert {answer["text"] for answer in stored["results"][1]["answers"]} <= {"vowel", "other"}
    calibrated = json.loads(
        manytune("evaluate", run, "--label-words", "vowel,other", "--calibrate", "--json").stdout
    )
    assert "divided by that where every field is N/A" in calibrated["provenance"]["Answers"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--calibrate"], "it is for --label-words"),
        (["--label-words", "vowel"], "2 to 200 labels; found 1"),
        (["--label-words", "a=x,b=y"], "is neither a label nor a label's word"),
    ],
)
def test_what_cannot_be_chosen_among_is_refused(run: Path, options: list[str], message: str) -> None:
    printed = manytune("evaluate", run, *options, fails=True).output
    assert message in " ".join(printed.replace("│", " ").split())


def expected(base: Base, adapter: Path | None, text: str) -> dict[str, float]:
    """The labels' probabilities by transformers' own model, token by token."""
    encoder = Encoder(base.tokenizer, max_length=None, chat=adapter is None)
    prompt = encoder.prompt_ids([Segment("user", text)])
    scores = []
    with attached(base, adapter) as model, torch.no_grad():
        for word in WORDS.values():
            ids = base.tokenizer(word, add_special_tokens=False)["input_ids"]
            logits = model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0].log_softmax(-1)
            scores.append(sum(logits[len(prompt) - 1 + place, token] for place, token in enumerate(ids)))
    return dict(zip(WORDS, torch.stack(scores).softmax(0).tolist(), strict=True))


def test_a_server_chooses_the_label_whose_word_is_likeliest(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    store = fill_store(tmp_path, base, ("one",))
    with TestClient(app_of(base, store), base_url="http://localhost") as client:

        def ask(**body: Any) -> Any:
            return client.post("/v1/classify", json=body)

        for model, adapter in (("base", None), ("one", tmp_path / "made-one")):
            answer = ask(model=model, input=["abc", "z"], label_words=WORDS)
            assert answer.status_code == 200, answer.text
            for row, text in zip(answer.json()["data"], ("abc", "z"), strict=True):
                probabilities = expected(base, adapter, text)
                assert row["probabilities"] == pytest.approx(probabilities, abs=1e-4)
                assert row["label"] == max(probabilities, key=lambda name: probabilities[name])
        [row] = ask(model="base", input="abc", label_words=WORDS, calibrate=True).json()["data"]
        free, plain = expected(base, None, "N/A"), expected(base, None, "abc")
        raw = {name: plain[name] / free[name] for name in WORDS}
        total = sum(raw.values())
        assert row["probabilities"] == pytest.approx(
            {name: value / total for name, value in raw.items()}, abs=1e-4
        )
        for body, message in (
            ({"input": "a", "label_words": ["x"]}, "2 to 200 labels"),
            ({"input": "a", "label_words": ["x", "x"]}, "a label is given twice"),
            ({"input": "a", "label_words": ["go", "good"]}, "begin those of 'good'"),
            ({"words": ["a"], "label_words": WORDS}, "words: it doesn't go with label_words"),
            ({"label_words": WORDS}, "expected either input or fields"),
            ({"fields": {"a": "b"}, "label_words": WORDS}, "this one has none"),
            ({"input": "a", "calibrate": True}, "calibrate: it goes with label_words"),
            ({"input": "a"}, "or give label_words"),
        ):
            refused = ask(model="base", **body)
            assert refused.status_code == 400 and message in refused.text, refused.text
