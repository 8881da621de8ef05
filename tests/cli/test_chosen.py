"""Adapters named on the command line: one that lacks tensors is refused, rather than run half untrained."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
from tests.methods.tiny_models import LLAMA

from manytune import CheckpointError, LoraConfig, PeftModel, PeftWarning, get_peft_model
from manytune.cli.chosen import choose
from manytune.store.attaching import attached


@pytest.fixture
def incomplete(tmp_path: Path) -> Path:
    """An adapter without a manifest, less one of its tensors."""
    get_peft_model(LLAMA.build(), LoraConfig(task_type="CAUSAL_LM")).save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(file)
    del tensors["base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"]
    safetensors.torch.save_file(tensors, file)
    return tmp_path


def test_the_command_line_refuses_an_adapter_that_lacks_tensors_and_leaves_the_base(incomplete: Path) -> None:
    base: Any = SimpleNamespace(model=LLAMA.build())
    before = {name for name, _ in base.model.named_parameters()}
    message = re.escape(
        f"{incomplete}: 1 tensors of the adapter are missing: "
        "base_model.model.model.layers.1.self_attn.q_proj.lora_B.default.weight. Used as it is, the adapter would be "
        "partly untrained. Save it again."
    )
    with pytest.raises(CheckpointError, match=message), attached(base, choose([incomplete])[0].stored.path):
        pass
    assert {name for name, _ in base.model.named_parameters()} == before


def test_the_library_warns_of_missing_tensors_as_peft_does(incomplete: Path) -> None:
    with pytest.warns(PeftWarning, match="Found missing adapter keys while loading the checkpoint"):
        PeftModel.from_pretrained(LLAMA.build(), incomplete)
