"""`task: classification` of images: runs over a vision transformer with a new head."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file
from tests.training.tiny_classifiers import classifier_content
from tests.training.tiny_images import image_recipe, save_image_base
from transformers import AutoModelForImageClassification, ViTImageProcessorPil

from manytune.errors import DataError, RecipeError, RunError, StoreError
from manytune.images import decoded
from manytune.store.adapters import open_adapter
from manytune.store.attaching import attached
from manytune.store.base import load_base
from manytune.store.classifier_base import classifier_base
from manytune.training.batches import labelled
from manytune.training.inputs import read_inputs
from manytune.training.recipe import recipe_from
from manytune.training.run import run


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft reads it
def test_it_learns_its_images_and_transformers_with_hf_peft_computes_the_same_from_the_files(
    tmp_path: Path,
) -> None:
    content = image_recipe(tmp_path)
    finished = run(recipe_from(content))
    loss = finished.training.validation_loss
    assert loss is not None and loss < 0.4 < 0.6931
    manifest = open_adapter(finished.adapter).manifest
    assert manifest is not None and manifest.labels == {"names": ["left", "right"], "counts": [8, 8]}
    assert manifest.unservable is None

    base = classifier_base(load_base(finished.base), ["left", "right"])
    rows: list[Any] = list(read_inputs(recipe_from(content), base=base).data.validation)
    with attached(base, finished.adapter) as model, torch.no_grad():
        mine = labelled.build(rows, pad_id=0).logits(model)
    whole = AutoModelForImageClassification.from_pretrained(content["base"], num_labels=2)
    theirs = peft.PeftModel.from_pretrained(whole, str(finished.adapter)).eval()
    processor = ViTImageProcessorPil.from_pretrained(content["base"])
    pixels = processor([decoded(row.image) for row in rows], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        torch.testing.assert_close(mine, theirs(pixel_values=pixels).logits, atol=1e-5, rtol=0)
    expected = torch.nn.functional.cross_entropy(mine, torch.tensor([row.label for row in rows]))
    assert expected.item() == pytest.approx(loss, abs=1e-5)


def test_targets_by_name_and_full_fine_tuning_train_too(tmp_path: Path) -> None:
    content = image_recipe(tmp_path, max_steps=1)
    content["data"] |= {"validation": None, "test": None}
    by_name = {"name": "lora", "r": 2, "target_modules": ["q_proj", "v_proj"]}
    changes = {"names": {"method": by_name}, "full": {"method": {"name": "full"}}}
    for name, change in changes.items():
        adapter = run(recipe_from({**content, **change, "output": str(tmp_path / name)})).adapter
        tensors = load_file(adapter / "adapter_model.safetensors")
        assert any("classifier" in tensor for tensor in tensors)
        assert any("q_proj" in tensor for tensor in tensors)
        assert any("fc1" in tensor for tensor in tensors) is (name == "full")


def test_another_image_in_a_row_is_another_row_to_whatever_compares_token_ids(tmp_path: Path) -> None:
    content = image_recipe(tmp_path)
    rows = read_inputs(recipe_from(content)).data.train
    assert len({row.prompt_ids for row in rows}) == len(rows)
    assert {len(row.prompt_ids) for row in rows} == {5}
    assert np.array_equal(rows[0].pixels(), rows[0].pixels())  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"text": "{{ side }}"}, "either text or image"),
        ({"image": None}, "or image, a field's name, and label, a field's name, go together"),
        ({"label": None}, "go together"),
        ({"overflow": "drop"}, "overflow is for texts"),
    ],
)
def test_what_does_not_go_with_images_is_an_error_of_the_recipe(
    data: dict[str, Any], message: str, tmp_path: Path
) -> None:
    content = image_recipe(tmp_path)
    with pytest.raises(RecipeError, match=message):
        recipe_from({**content, "data": content["data"] | data})


def test_a_base_that_reads_something_else_and_virtual_tokens_are_refused(tmp_path: Path) -> None:
    content, texts = image_recipe(tmp_path / "images"), classifier_content(tmp_path / "texts")
    prompts = {"name": "prompt-tuning", "num_virtual_tokens": 2}
    for changed, message in (
        ({**content, "base": texts["base"]}, r"reads text; give data\.text"),
        ({**texts, "base": content["base"]}, r"reads images; give data\.image"),
        ({**content, "method": prompts}, "puts virtual tokens before a text"),
    ):
        with pytest.raises(RunError, match=message):
            read_inputs(recipe_from(changed))


def test_an_image_that_cannot_be_read_is_an_error_with_its_line_or_left_out(tmp_path: Path) -> None:
    content = image_recipe(tmp_path)
    file = Path(content["data"]["train"])
    with file.open("a") as rows:
        rows.write(json.dumps({"picture": "absent.png", "side": "left"}) + "\n")
        rows.write(json.dumps({"picture": [[0, 300]], "side": "left"}) + "\n")
    with pytest.raises(DataError, match=r"rows\.jsonl:34: the field 'picture'.*found 300"):
        read_inputs(recipe_from(content))
    content["data"] |= {"on_error": "skip", "validation": None, "test": None}
    found = read_inputs(recipe_from(content)).data
    assert [row.row for row in found.left_out] == [34, 33] and len(found.train) == 32
    assert "absent.png: there is no such image file" in found.left_out[1].reason


def test_the_image_processor_is_part_of_the_base(tmp_path: Path) -> None:
    plain = load_base(str(save_image_base(tmp_path / "plain")))
    other = load_base(str(save_image_base(tmp_path / "other", mean=0.4)))
    assert plain.fingerprint.differences(other.fingerprint) == ("tokenizer",)
    assert plain.is_encoder and plain.positions is None
    with pytest.raises(StoreError, match=r"makes 3 × 6 × 6 of an image, and the model reads 3 × 4 × 4"):
        load_base(str(save_image_base(tmp_path / "larger", side=6)))
