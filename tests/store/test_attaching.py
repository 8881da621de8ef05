"""A base with an adapter for a block: whole or refused, and afterwards the base is as it was."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from tests.methods.tiny_models import LLAMA
from tests.store.adapters_made import make_adapter

from manytune import CheckpointError, LoraConfig, PeftModel, PeftWarning, get_peft_model
from manytune.store.attaching import attached
from manytune.store.base import Base

IDS = torch.tensor([[3, 4, 5, 9, 12]])


@pytest.fixture
def incomplete(tmp_path: Path) -> Path:
    """An adapter without a manifest, less one of its tensors."""
    get_peft_model(LLAMA.build(), LoraConfig(task_type="CAUSAL_LM")).save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(file)
    del tensors["base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"]
    safetensors.torch.save_file(tensors, file)
    return tmp_path


def test_an_adapter_that_lacks_tensors_is_refused_and_the_base_left_alone(incomplete: Path) -> None:
    base: Any = SimpleNamespace(model=LLAMA.build())
    before = {name for name, _ in base.model.named_parameters()}
    message = re.escape(
        f"{incomplete}: 1 tensors of the adapter are missing: "
        "base_model.model.model.layers.1.self_attn.q_proj.lora_B.default.weight. Used as it is, the adapter would be "
        "partly untrained. Save it again."
    )
    with pytest.raises(CheckpointError, match=message), attached(base, incomplete):
        pass
    assert {name for name, _ in base.model.named_parameters()} == before


def test_the_library_warns_of_missing_tensors_as_peft_does(incomplete: Path) -> None:
    with pytest.warns(PeftWarning, match="Found missing adapter keys while loading the checkpoint"):
        PeftModel.from_pretrained(LLAMA.build(), incomplete)


@pytest.mark.parametrize(
    ("method", "options"),
    [("lora", {}), ("ia3", {}), ("prompt-tuning", {"num_virtual_tokens": 3}), ("full", {})],
)
def test_an_adapter_acts_inside_the_block_and_leaves_the_base_as_it_was(
    method: str, options: dict[str, int], tmp_path: Path, tiny_base: Base
) -> None:
    path = make_adapter(tmp_path / "adapter", tiny_base, method=method, **options)
    model: Any = tiny_base.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        plain = model(input_ids=IDS).logits[:, -1]
        with attached(tiny_base, path) as adapted:
            assert not torch.allclose(adapted(input_ids=IDS).logits[:, -1], plain)
        assert torch.equal(model(input_ids=IDS).logits[:, -1], plain)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_without_an_adapter_the_block_gets_the_base_itself(tiny_base: Base) -> None:
    with attached(tiny_base, None) as model:
        assert model is tiny_base.model
