from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy
import pytest
import torch
from safetensors.torch import load_file
from tests.store.adapters_made import make_adapter
from transformers import GPT2Config, LlamaConfig, Qwen2Config
from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

from manytune.errors import StoreError
from manytune.store.base import Base
from manytune.store.export_gguf import export_gguf

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
GGUF_NAMES = dict(
    zip(ALL, ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"], strict=True)
)


def read(path: Path) -> tuple[dict[str, Any], dict[str, numpy.ndarray]]:
    """A file's fields and tensors."""
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return fields, {tensor.name: numpy.array(tensor.data) for tensor in reader.tensors}


def test_llama_cpp_finds_the_update_of_each_weight_in_its_own_order_of_rows(
    tmp_path: Path, tiny_base: Base
) -> None:
    """The other order is transformers' own, from where it reads llama.cpp's files."""
    adapter = make_adapter(tmp_path / "a", tiny_base, target_modules=ALL)
    export_gguf(adapter, tmp_path / "a.gguf", tiny_base.model.config)
    fields, found = read(tmp_path / "a.gguf")
    assert fields["general.type"] == "adapter"
    assert fields["general.architecture"] == "llama"
    assert fields["adapter.type"] == "lora"
    alpha = fields["adapter.lora.alpha"]
    tensors = load_file(adapter / "adapter_model.safetensors")
    assert len(found) == len(tensors) == 2 * 2 * len(ALL)
    for name, a in tensors.items():
        if "lora_A" not in name:
            continue
        number, module = name.split(".")[4], name.split(".")[6]
        mine = f"blk.{number}.{GGUF_NAMES[module]}.weight"
        low, high = found[f"{mine}.lora_a"], found[f"{mine}.lora_b"]
        delta = alpha / high.shape[1] * high @ low
        if module in ("q_proj", "k_proj"):
            delta = LlamaTensorProcessor()._reverse_permute_weights(delta, 2, 2)
        expected = 8 / 2 * tensors[name.replace("lora_A", "lora_B")] @ a
        numpy.testing.assert_allclose(delta, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_grouped_keys_are_reordered_by_their_own_heads() -> None:
    from manytune.store.export_gguf import llama_cpp_order

    rows = torch.arange(24.0).view(12, 2)
    back = LlamaTensorProcessor()._reverse_permute_weights(llama_cpp_order(rows, 3).numpy(), 6, 3)
    assert numpy.array_equal(back, rows.numpy())


@pytest.mark.parametrize(
    ("options", "scalings"),
    [
        ({"use_rslora": True, "r": 4}, {"q_proj": 8 / 2, "v_proj": 8 / 2}),
        ({"lora_alpha": 6, "rank_pattern": {"q_proj": 3}}, {"q_proj": 2.0, "v_proj": 3.0}),
        ({"lora_alpha": 6, "alpha_pattern": {"q_proj": 5}}, {"q_proj": 2.5, "v_proj": 3.0}),
    ],
)
def test_scalings_that_one_alpha_cannot_say_go_into_b(
    options: dict[str, Any], scalings: dict[str, float], tmp_path: Path, tiny_base: Base
) -> None:
    adapter = make_adapter(tmp_path / "a", tiny_base, **options)
    config = Qwen2Config(num_hidden_layers=2)  # whose rows keep their order
    export_gguf(adapter, tmp_path / "a.gguf", config)
    fields, found = read(tmp_path / "a.gguf")
    assert fields["general.architecture"] == "qwen2"
    tensors = load_file(adapter / "adapter_model.safetensors")
    for module, scaling in scalings.items():
        b = tensors[f"base_model.model.model.layers.1.self_attn.{module}.lora_B.weight"]
        mine = found[f"blk.1.{GGUF_NAMES[module]}.weight.lora_b"]
        factor = fields["adapter.lora.alpha"] / mine.shape[1]
        numpy.testing.assert_allclose(factor * mine, scaling * b.numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "ia3"}, "llama.cpp runs plain LoRA adapters only, and it is of type IA3"),
        ({"use_dora": True}, "and it has use_dora"),
        ({"bias": "all"}, "and it has bias='all'"),
        ({"target_modules": ["embed_tokens"]}, r"and it has base_model\S+, which isn't a linear layer's"),
    ],
)
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_what_llama_cpp_cannot_run_is_named(
    options: dict[str, Any], message: str, tmp_path: Path, tiny_base: Base
) -> None:
    adapter = make_adapter(tmp_path / "a", tiny_base, **options)
    with pytest.raises(StoreError, match=message):
        export_gguf(adapter, tmp_path / "a.gguf", LlamaConfig())
    assert list(tmp_path.glob("*.gguf*")) == []


def test_an_architecture_that_is_not_known_is_named(tmp_path: Path, tiny_base: Base) -> None:
    adapter = make_adapter(tmp_path / "a", tiny_base)
    with pytest.raises(
        StoreError, match=r"the base is a 'gpt2' model; adapters of llama, .*Merge the adapter"
    ):
        export_gguf(adapter, tmp_path / "a.gguf", GPT2Config())
