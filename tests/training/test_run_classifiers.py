"""`task: classification`: runs of encoders and decoders with a new head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.training.test_run import StoppedError, stop_after
from tests.training.tiny_classifiers import classifier_content, write_labelled
from tests.training.tiny_run import adapter_digest

from manytune.errors import DataError, RecipeError
from manytune.store.adapters import open_adapter
from manytune.store.attaching import attached
from manytune.store.base import load_base
from manytune.store.classifier_base import classifier_base
from manytune.training.batches import labelled
from manytune.training.inputs import read_inputs
from manytune.training.recipe import Recipe, recipe_from
from manytune.training.run import run


def recipe(directory: Path, kind: str = "bert", **changes: Any) -> Recipe:
    content = classifier_content(directory, kind)
    for section, values in changes.items():
        content[section] = {**content[section], **values}
    return recipe_from(content)


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta", "llama"])
def test_a_classifier_learns_its_rows_and_is_the_same_from_its_files(kind: str, tmp_path: Path) -> None:
    finished = run(recipe(tmp_path, kind))
    assert finished.training.validation_loss is not None and finished.training.validation_loss < 0.5 < 0.6931
    manifest = open_adapter(finished.adapter).manifest
    assert manifest is not None and manifest.labels == {"names": ["other", "vowel"], "counts": [12, 12]}

    base = classifier_base(load_base(finished.base), ["other", "vowel"])
    assert base.model.config.id2label == {0: "other", 1: "vowel"}
    rows = read_inputs(recipe(tmp_path, kind), base=base).data.validation
    with attached(base, finished.adapter) as model, torch.no_grad():
        together = labelled.build(rows, pad_id=base.tokenizer.pad_token_id).logits(model)
        alone = [labelled.build([row], pad_id=0).logits(model)[0] for row in rows]
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-5, rtol=0)
    loss = torch.nn.functional.cross_entropy(together, torch.tensor([row.completion_ids[0] for row in rows]))
    assert loss.item() == pytest.approx(finished.training.validation_loss, abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("llama", {"name": "full"}),
        ("bert", {"name": "ia3"}),
        ("bert", {"name": "adalora", "init_r": 4, "target_r": 2}),
        ("llama", {"name": "vera", "r": 4}),
        ("bert", {"name": "bottleneck"}),
        ("llama", {"name": "prompt-tuning", "num_virtual_tokens": 3}),
        ("bert", {"name": "p-tuning", "num_virtual_tokens": 3}),
        ("llama", {"name": "prefix-tuning", "num_virtual_tokens": 3}),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else value,
)
def test_every_method_trains_a_classifier(kind: str, method: dict[str, Any], tmp_path: Path) -> None:
    content = classifier_content(tmp_path, kind, checkpoint_every=None, epochs=1)
    content["data"] |= {"validation": None}
    finished = run(recipe_from({**content, "method": method}))
    names = list(load_file(finished.adapter / "adapter_model.safetensors"))
    assert any("classifier" in name or "score" in name for name in names)


def test_another_seed_draws_another_head(tmp_path: Path) -> None:
    def head(seed: int) -> torch.Tensor:
        content = classifier_content(tmp_path / str(seed), seed=seed, checkpoint_every=None)
        content["training"] |= {"max_steps": 1, "learning_rate": 1e-9}
        tensors = load_file(run(recipe_from(content)).adapter / "adapter_model.safetensors")
        return next(tensor for name, tensor in tensors.items() if name.endswith("classifier.weight"))

    assert not torch.allclose(head(0), head(1), atol=1e-4)


def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    once = {"training": {"epochs": 1, "checkpoint_every": 2}, "data": {"validation": None}}
    whole = run(recipe(tmp_path / "whole", **once))
    with pytest.raises(StoppedError):
        run(recipe(tmp_path / "cut", **once), report=stop_after(3))
    resumed = run(recipe(tmp_path / "cut", **once), resume=True)
    assert resumed.resumed_from == 2
    assert adapter_digest(resumed.adapter) == adapter_digest(whole.adapter)


def test_a_label_that_no_training_row_has_is_an_error_with_its_line(tmp_path: Path) -> None:
    other = write_labelled(tmp_path / "other.jsonl", 4)
    other.write_text(other.read_text() + json.dumps({"text": "aaa", "label": "Vowels"}) + "\n")
    with pytest.raises(
        DataError, match=r"other\.jsonl:5: the label 'Vowels' is no training row's: other, vowel"
    ):
        read_inputs(recipe(tmp_path / "run", data={"test": str(other)}))


def test_a_text_that_is_too_long_is_an_error_left_out_or_cut(tmp_path: Path) -> None:
    rows = write_labelled(tmp_path / "rows.jsonl", 20)
    rows.write_text(json.dumps({"text": "a" * 80, "label": "vowel"}) + "\n" + rows.read_text())
    data = {"train": str(rows), "validation": None, "test": None}
    with pytest.raises(DataError, match=r"rows\.jsonl:1: 82 tokens; .* allow 66"):
        read_inputs(recipe(tmp_path / "run", data=data))
    dropped = read_inputs(recipe(tmp_path / "run", data={**data, "overflow": "drop"})).data
    assert [row.row for row in dropped.left_out] == [1]
    cut = read_inputs(recipe(tmp_path / "run", data={**data, "overflow": "truncate_prompt"})).data
    assert (cut.truncated, len(cut.train[0].prompt_ids), cut.max_prompt) == (1, 66, 66)


def test_balanced_weights_give_each_label_the_same_part_of_the_loss(tmp_path: Path) -> None:
    rows = write_labelled(tmp_path / "rows.jsonl", 8, names=("a", "b", "a", "a"))
    data = {"train": str(rows), "validation": None, "test": None}
    found = read_inputs(recipe(tmp_path / "run", data=data, training={"class_weights": "balanced"})).data
    weights = {row.completion_ids[0]: row.weight for row in found.train}  # type: ignore[attr-defined]
    assert weights == pytest.approx({0: 8 / 12, 1: 2.0})  # six rows and two: 6 x 2/3 = 2 x 2, and 8 in all
    with pytest.raises(DataError, match=r"class_weights: expected a weight for each of \['a', 'b'\]"):
        read_inputs(recipe(tmp_path / "run", data=data, training={"class_weights": {"a": 1, "c": 2}}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "tagging"}, "task"),
        ({"task": "generation"}, "data.text and data.label are for task: classification"),
        ({"data": {"train": "x", "text": "{{ t }}"}}, "go together"),
        (
            {"data": {"train": "x", "text": "{{ t }}", "label": "l", "prompt": "p"}},
            "give either text and label",
        ),
        ({"data": {"train": "x"}}, "task: classification needs data.text"),
        ({"training": {"compile": True}}, "training.compile isn't for task: classification"),
    ],
)
def test_a_recipe_that_mixes_tasks_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe_from({**classifier_content(tmp_path), **changes})
