from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.store.adapters_made import make_adapter
from tests.store.tiny import tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from manytune.errors import AdapterError, ConfigError, TargetExistsError
from manytune.methods.arithmetic.combination import Combination
from manytune.model.peft_model import PeftModel
from manytune.store.adapters import open_adapter
from manytune.store.base import Base, load_base
from manytune.store.combining import combine_adapters, merge_adapters
from manytune.store.store import AdapterStore

IDS = torch.tensor([[3, 4, 5, 9, 12]])


def deltas(path: Path) -> dict[str, torch.Tensor]:
    """ΔW = 4 · BA of each module, from the file; alpha is 8 and r is 2 in `make_adapter`."""
    tensors = load_file(path / "adapter_model.safetensors")
    return {
        name: 4 * tensors[name.replace("lora_A", "lora_B")] @ tensors[name]
        for name in tensors
        if "lora_A" in name
    }


@pytest.fixture
def pair(tmp_path: Path, tiny_base: Base) -> list[Path]:
    return [make_adapter(tmp_path / f"a{seed}", tiny_base, seed=seed) for seed in range(2)]


def test_a_combination_adds_the_weighted_updates_and_says_what_it_is_made_of(
    pair: list[Path], tmp_path: Path, tiny_base: Base
) -> None:
    before = {name: tensor.clone() for name, tensor in tiny_base.model.state_dict().items()}
    manifest = combine_adapters(pair, [0.75, -0.5], tmp_path / "sum", tiny_base, Combination("cat"))
    after = tiny_base.model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    tensors = load_file(tmp_path / "sum" / "adapter_model.safetensors")
    first, second = map(deltas, pair)
    for name, delta in first.items():
        found = tensors[name.replace("lora_A", "lora_B")] @ tensors[name]
        torch.testing.assert_close(found, 0.75 * delta - 0.5 * second[name], rtol=1e-4, atol=1e-5)
    store = AdapterStore(tmp_path / "store")
    ids = [store.add(path).digest for path in pair]
    assert manifest.combination == {
        "kind": "cat",
        "adapters": [{"adapter": ids[0], "weight": 0.75}, {"adapter": ids[1], "weight": -0.5}],
    }
    assert open_adapter(tmp_path / "sum", base=tiny_base).manifest == manifest
    assert manifest.template == {"prompt": "{{ text }}", "completion": "{{ answer }}"}
    assert manifest.scores == {}


@pytest.mark.parametrize("second", [{"max_prompt": 7}, {"max_prompt": 8}, None])
def test_a_combination_is_asked_as_its_parts_if_these_are_asked_alike(
    pair: list[Path], second: dict[str, int] | None, tmp_path: Path, tiny_base: Base
) -> None:
    for path, options in zip(pair, ({"max_prompt": 7}, second), strict=True):
        content = json.loads((path / "manifest.json").read_text())
        (path / "manifest.json").write_text(json.dumps({**content, "encoding_options": options}))
    manifest = combine_adapters(pair, [1, 1], tmp_path / "sum", tiny_base, Combination("cat"))
    alike = second == {"max_prompt": 7}
    assert manifest.encoding_options == (second if alike else None)
    assert (manifest.template is not None) == alike


def test_adapters_that_cannot_be_added_up_are_refused_and_nothing_is_left(
    pair: list[Path], tmp_path: Path, tiny_base: Base
) -> None:
    dora = make_adapter(tmp_path / "dora", tiny_base, use_dora=True)
    with pytest.raises(ConfigError, match="has use_dora=True"):
        combine_adapters([pair[0], dora], [1, 1], tmp_path / "sum", tiny_base, Combination("cat"))
    with pytest.raises(AdapterError, match="one weight for each adapter"):
        combine_adapters(pair, [1], tmp_path / "sum", tiny_base, Combination("cat"))
    assert not (tmp_path / "sum").exists()
    assert not any("lora" in name for name, _ in tiny_base.model.named_parameters())


def test_a_merged_model_is_a_plain_one_that_gives_the_adapters_logits(
    pair: list[Path], tmp_path: Path, tiny_base: Base
) -> None:
    adapted = PeftModel.from_pretrained(tiny_model(), pair[0])
    expected = adapted(input_ids=IDS).logits
    merge_adapters(pair[:1], tmp_path / "merged", load_base(tiny_base.name))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(plain(input_ids=IDS).logits, expected, rtol=1e-4, atol=1e-5)
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").get_vocab() == tiny_base.tokenizer.get_vocab()
    with pytest.raises(TargetExistsError, match="merged exists already"):
        merge_adapters(pair[:1], tmp_path / "merged", load_base(tiny_base.name))


def test_several_adapters_are_merged_one_after_another(
    pair: list[Path], tmp_path: Path, tiny_base: Base
) -> None:
    merge_adapters(pair, tmp_path / "merged", load_base(tiny_base.name))
    weights = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").state_dict()
    first, second = map(deltas, pair)
    for name, delta in first.items():
        own = name.removeprefix("base_model.model.").replace("lora_A.", "")
        expected = tiny_base.model.state_dict()[own] + delta + second[name]
        torch.testing.assert_close(weights[own], expected, rtol=1e-4, atol=1e-5)


def test_a_soft_prompt_has_no_place_in_a_plain_model(tmp_path: Path, tiny_base: Base) -> None:
    prompt = make_adapter(tmp_path / "prompt", tiny_base, method="prompt-tuning", num_virtual_tokens=2)
    with pytest.raises(AdapterError, match="soft prompt"):
        merge_adapters([prompt], tmp_path / "merged", load_base(tiny_base.name))
    assert not (tmp_path / "merged").exists()
