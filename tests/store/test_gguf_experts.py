"""Adapters on experts and routers for llama.cpp: what it adds to each weight is what merging adds."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import gguf
import numpy
import pytest
import torch
from tests.methods.tiny_moe import GPT_OSS, MIXTRAL, QWEN3, Mixture
from torch import nn

from manytune import LoraConfig, PeftModel, get_peft_model
from manytune.errors import StoreError
from manytune.methods.tuners.terms import ParameterUpdate
from manytune.store.export_gguf import export_gguf
from manytune.store.exports import export_vllm
from manytune.store.gguf_experts import in_single_projections


def saved(directory: Path, mixture: Mixture, **options: Any) -> tuple[Path, PeftModel]:
    model = get_peft_model(mixture.build(), LoraConfig(r=3, **options))
    generator = torch.Generator().manual_seed(1)
    for _, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(directory)
    return directory, model


def by_llama_cpp_names(merged: nn.Module, plain: nn.Module, kind: Any) -> dict[str, numpy.ndarray]:
    """What merging added to each weight; gate and up, which transformers keeps one above the other, apart."""
    names = gguf.get_tensor_name_map(kind, 2)
    before = dict(plain.named_parameters())
    found = {}
    for name, weight in merged.named_parameters():
        delta = (weight.double() - before[name].double()).detach().numpy()
        parts = {name: delta}
        if name.endswith("gate_up_proj"):
            half = delta.shape[1] // 2
            stem = name.removesuffix("gate_up_proj")
            parts = {f"{stem}gate_proj": delta[:, :half], f"{stem}up_proj": delta[:, half:]}
        for path, part in parts.items():
            if part.any():
                theirs = names.get_name(path, try_suffixes=(".weight",))
                found[theirs if theirs.endswith(".weight") else f"{theirs}.weight"] = part
    return found


@pytest.mark.parametrize(
    ("mixture", "kind"), [(QWEN3, gguf.MODEL_ARCH.QWEN3MOE), (MIXTRAL, gguf.MODEL_ARCH.LLAMA)], ids=str
)
def test_llama_cpp_adds_to_experts_and_routers_what_merging_adds(
    mixture: Mixture, kind: Any, tmp_path: Path
) -> None:
    parameters = ["experts.gate_up_proj", "experts.down_proj", "gate.weight"]
    options = {
        "target_modules": ["o_proj"],
        "target_parameters": parameters,
        "rank_pattern": {"gate_up_proj": 6},
    }
    adapter, model = saved(tmp_path / "a", mixture, lora_alpha=5, **options)
    export_gguf(adapter, tmp_path / "a.gguf", mixture.build().config)
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    found = {tensor.name: numpy.array(tensor.data) for tensor in reader.tensors}
    alpha = reader.fields["adapter.lora.alpha"].contents()
    expected = by_llama_cpp_names(copy.deepcopy(model).merge_and_unload(), mixture.build(), kind)
    assert {name.rpartition(".")[0] for name in found} == expected.keys() and len(expected) == 2 * 5
    assert "blk.1.ffn_up_exps.weight" in expected and "blk.0.ffn_gate_inp.weight" in expected
    for name, delta in expected.items():
        low, high = found[f"{name}.lora_a"], found[f"{name}.lora_b"]
        assert low.ndim == high.ndim == delta.ndim
        # llama.cpp takes the rank from the innermost dimension of B, and multiplies expert by expert.
        numpy.testing.assert_allclose(alpha / high.shape[-1] * high @ low, delta, rtol=1e-4, atol=1e-4)


def test_gate_and_up_that_are_kept_in_turns_are_taken_apart() -> None:
    model = GPT_OSS.build()
    up = torch.arange(24.0).view(2, 6, 2)
    path = "model.layers.0.mlp.experts"
    found = in_single_projections({f"{path}.gate_up_proj": ParameterUpdate(torch.ones(2, 2, 3), up)}, model)
    assert torch.equal(found[f"{path}.gate_proj"].up, up[:, [0, 2, 4]])
    assert torch.equal(found[f"{path}.up_proj"].up, up[:, [1, 3, 5]])


def test_an_architecture_that_is_not_known_is_refused_with_the_way_out(tmp_path: Path) -> None:
    adapter, model = saved(
        tmp_path / "a", GPT_OSS, target_modules=[], target_parameters=["experts.down_proj"]
    )
    with pytest.raises(StoreError, match=r"'gpt_oss' model; adapters of .*qwen3_moe.*Merge the adapter"):
        export_gguf(adapter, tmp_path / "a.gguf", model.config)


def test_vllm_is_refused_with_the_way_out(tmp_path: Path) -> None:
    adapter, _ = saved(tmp_path / "a", QWEN3, target_modules=[], target_parameters=["experts.down_proj"])
    with pytest.raises(
        StoreError, match=r"it adapts parameters \(target_parameters=.*Merge it into its base"
    ):
        export_vllm({"a": adapter}, tmp_path / "out")
