"""One verdict on whether a server can run an adapter, wherever it is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.store.adapters_made import make_adapter
from tests.store.peft_made import save_peft

from manytune.methods.arithmetic.combination import Combination
from manytune.store.base import Base
from manytune.store.combining import combine_adapters
from manytune.store.manifest import Manifest
from manytune.store.servability import note_verdict, why_not_served
from manytune.store.store import AdapterStore
from manytune.store.verification import verify_adapter

UNSERVABLE: dict[str, tuple[dict[str, Any], str]] = {
    "a part next to a changed base": (
        {
            "method": "combined",
            "weights": {"name": "lora", "r": 2, "target_modules": ["q_proj"], "init_lora_weights": "pissa"},
            "prompt": {"name": "prompt-tuning", "num_virtual_tokens": 2},
        },
        "next to a changed base",
    ),
    "a changed base": ({"init_lora_weights": "pissa"}, "path_initial_model_for_weight_conversion"),
    "another task": ({"task_type": "QUESTION_ANS"}, "AutoPeftModelForQuestionAnswering"),
    "two forms of updates": (
        {"method": "bottleneck", "bottleneck_size": 4, "modules_to_save": ["lm_head"]},
        "PeftModel.from_pretrained",
    ),
}


def made_of(directory: Path, base: Base, options: dict[str, Any]) -> Path:
    if "task_type" in options:
        return save_peft(directory, **options)
    return make_adapter(directory, base, **options)


@pytest.mark.parametrize("case", UNSERVABLE)
def test_add_verify_and_the_manifest_give_one_verdict_with_the_way_out(
    case: str, tmp_path: Path, tiny_base: Base
) -> None:
    options, way_out = UNSERVABLE[case]
    made = made_of(tmp_path / "made", tiny_base, options)
    verdict = why_not_served(made, tiny_base.model)
    assert verdict is not None and way_out in verdict
    store = AdapterStore(tmp_path / "store")
    entry = store.add(made, name="a", base=tiny_base)
    assert entry.manifest.unservable == verdict
    assert verify_adapter(entry.path, base=tiny_base).unservable == verdict
    assert verify_adapter(entry.path).unservable == verdict


def test_what_can_be_served_has_no_verdict_and_no_key(tmp_path: Path, tiny_base: Base) -> None:
    store = AdapterStore(tmp_path / "store")
    entry = store.add(save_peft(tmp_path / "made"), base=tiny_base)
    assert entry.manifest.unservable is None
    assert "unservable" not in json.loads((entry.path / "manifest.json").read_text())
    assert verify_adapter(entry.path, base=tiny_base).unservable is None


def test_adding_again_with_the_base_brings_the_verdict_up_to_date(tmp_path: Path, tiny_base: Base) -> None:
    made = make_adapter(tmp_path / "made", tiny_base, init_lora_weights="pissa")
    store = AdapterStore(tmp_path / "store")
    assert store.add(made).manifest.unservable is None  # never tried
    again = store.add(made, base=tiny_base)
    assert again.manifest.unservable is not None
    assert store.add(made).manifest.unservable == again.manifest.unservable
    assert again.digest == store.add(made).digest  # it isn't part of what the adapter is


def test_what_was_just_trained_or_combined_notes_its_verdict(tmp_path: Path, tiny_base: Base) -> None:
    made = make_adapter(tmp_path / "made", tiny_base, init_lora_weights="pissa")
    assert note_verdict(made, tiny_base.model) == Manifest.read(made / "manifest.json").unservable is not None
    plain = make_adapter(tmp_path / "plain", tiny_base)
    assert note_verdict(plain, tiny_base.model) is None
    combined = combine_adapters([plain], [0.5], tmp_path / "combined", tiny_base, Combination("cat"))
    assert combined.unservable is None
